//! The host: privileges, file systems, interfaces, routes and cgroups.

pub(in crate::agent) mod capabilities;
pub(in crate::agent) mod link_speed;
pub(in crate::agent) mod link_use;
pub(in crate::agent) mod mounts;
pub(in crate::agent) mod netlink;
pub(in crate::agent) mod netlink_socket;
pub(in crate::agent) mod pod_cgroup;
