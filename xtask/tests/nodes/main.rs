//! Kubernetes clusters with nodes on this machine: starting and removing them, and what is installed on
//! them.

mod clusters;
mod faults;
mod install;
mod page;
mod site;
mod walk;
