//! Options of TCP that the standard library does not have.
#![expect(unsafe_code, reason = "setsockopt")]

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Sets an option of TCP whose value is numbers.
pub(crate) fn set_tcp_option<const N: usize>(socket: &impl AsFd, option: i32, value: [i32; N]) {
    // SAFETY: the pointer and length are of live numbers.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of::<[i32; N]>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "option {option}: {}", std::io::Error::last_os_error());
}
