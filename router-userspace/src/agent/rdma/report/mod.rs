//! How RDMA is shown: in `/v1/loads`, in `/metrics` and in load frames.

mod frame_records;
mod metrics;
mod rdma_report;
mod view;

pub use rdma_report::{DeviceReport, RdmaReport};

pub(in crate::agent) use frame_records::{PodRdmaRates, device_records, pod_rates, with_rdma};
pub(in crate::agent) use metrics::encode as encode_metrics;
#[cfg(test)]
pub(in crate::agent) use rdma_report::HolderReport;
pub(in crate::agent) use view::{PodNames, RdmaLoad};
