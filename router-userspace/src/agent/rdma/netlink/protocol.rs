//! The RDMA netlink commands and attributes that the agent uses
//! (include/uapi/rdma/rdma_netlink.h).

/// `RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, 0)`.
const NLDEV: u16 = 5 << 10;

/// A command of RDMA netlink's nldev client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NldevCommand {
    Devices,
    Ports,
    QueuePairs,
    ConnectionIds,
    /// The driver of the device's uverbs file.
    Driver,
    Counters,
}

impl NldevCommand {
    /// The message's type.
    pub fn kind(self) -> u16 {
        NLDEV
            + match self {
                NldevCommand::Devices => 1,
                NldevCommand::Ports => 5,
                NldevCommand::QueuePairs => 10,
                NldevCommand::ConnectionIds => 11,
                NldevCommand::Driver => 15,
                NldevCommand::Counters => 17,
            }
    }

    /// Whether the kernel answers with a dump.
    pub fn is_dump(self) -> bool {
        !matches!(self, NldevCommand::Driver | NldevCommand::Counters)
    }
}

pub(in crate::agent) const DEV_INDEX: u16 = 1;
pub(in crate::agent) const DEV_NAME: u16 = 2;
pub(in crate::agent) const PORT_INDEX: u16 = 3;
pub(in crate::agent) const NODE_GUID: u16 = 6;
pub(in crate::agent) const PORT_STATE: u16 = 12;
pub(in crate::agent) const RES_QP: u16 = 19;
pub(in crate::agent) const RES_QP_ENTRY: u16 = 20;
pub(in crate::agent) const RES_LQPN: u16 = 21;
pub(in crate::agent) const RES_RQ_PSN: u16 = 23;
pub(in crate::agent) const RES_SQ_PSN: u16 = 24;
pub(in crate::agent) const RES_TYPE: u16 = 26;
pub(in crate::agent) const RES_STATE: u16 = 27;
pub(in crate::agent) const RES_PID: u16 = 28;
pub(in crate::agent) const RES_KERN_NAME: u16 = 29;
pub(in crate::agent) const RES_CM_ID: u16 = 30;
pub(in crate::agent) const RES_CM_ID_ENTRY: u16 = 31;
pub(in crate::agent) const RES_SRC_ADDR: u16 = 33;
pub(in crate::agent) const RES_DST_ADDR: u16 = 34;
pub(in crate::agent) const NDEV_INDEX: u16 = 50;
pub(in crate::agent) const NDEV_NAME: u16 = 51;
pub(in crate::agent) const DEV_PROTOCOL: u16 = 67;
pub(in crate::agent) const CHARDEV_TYPE: u16 = 69;
pub(in crate::agent) const UVERBS_DRIVER_ID: u16 = 73;
pub(in crate::agent) const HWCOUNTERS: u16 = 80;
pub(in crate::agent) const HWCOUNTER_ENTRY: u16 = 81;
pub(in crate::agent) const HWCOUNTER_NAME: u16 = 82;
pub(in crate::agent) const HWCOUNTER_VALUE: u16 = 83;
