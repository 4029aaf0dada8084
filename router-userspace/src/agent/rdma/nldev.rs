//! The commands and attributes of RDMA netlink that are used (include/uapi/rdma/rdma_netlink.h).

/// `RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, 0)`.
const NLDEV: u16 = 5 << 10;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    Devices,
    Ports,
    QueuePairs,
    ConnectionIds,
    /// Which driver: that of the device's uverbs file.
    Driver,
    Counters,
}

impl Command {
    /// The message's type.
    pub fn kind(self) -> u16 {
        NLDEV
            + match self {
                Command::Devices => 1,
                Command::Ports => 5,
                Command::QueuePairs => 10,
                Command::ConnectionIds => 11,
                Command::Driver => 15,
                Command::Counters => 17,
            }
    }

    /// Whether the kernel answers with a dump.
    pub fn is_dump(self) -> bool {
        !matches!(self, Command::Driver | Command::Counters)
    }
}

pub(super) const DEV_INDEX: u16 = 1;
pub(super) const DEV_NAME: u16 = 2;
pub(super) const PORT_INDEX: u16 = 3;
pub(super) const NODE_GUID: u16 = 6;
pub(super) const PORT_STATE: u16 = 12;
pub(super) const RES_QP: u16 = 19;
pub(super) const RES_QP_ENTRY: u16 = 20;
pub(super) const RES_LQPN: u16 = 21;
pub(super) const RES_RQ_PSN: u16 = 23;
pub(super) const RES_SQ_PSN: u16 = 24;
pub(super) const RES_TYPE: u16 = 26;
pub(super) const RES_STATE: u16 = 27;
pub(super) const RES_PID: u16 = 28;
pub(super) const RES_KERN_NAME: u16 = 29;
pub(super) const RES_CM_ID: u16 = 30;
pub(super) const RES_CM_ID_ENTRY: u16 = 31;
pub(super) const RES_SRC_ADDR: u16 = 33;
pub(super) const RES_DST_ADDR: u16 = 34;
pub(super) const NDEV_INDEX: u16 = 50;
pub(super) const NDEV_NAME: u16 = 51;
pub(super) const DEV_PROTOCOL: u16 = 67;
pub(super) const CHARDEV_TYPE: u16 = 69;
pub(super) const UVERBS_DRIVER_ID: u16 = 73;
pub(super) const HWCOUNTERS: u16 = 80;
pub(super) const HWCOUNTER_ENTRY: u16 = 81;
pub(super) const HWCOUNTER_NAME: u16 = 82;
pub(super) const HWCOUNTER_VALUE: u16 = 83;
