//! [`ErdmaDriver`]: makes erdma's installer driver refresh a device's counters, as `eadm stat` does.
//!
//! The driver that Alibaba Cloud's installer builds (erdma_ioctl.h there, as in the kernels of
//! OpenAnolis) has a device file `/dev/erdma`. Its `STAT_DEV` makes the device write its counters
//! where later reads by netlink and sysfs find them. The layout of the reply differs between
//! versions and is not needed. The driver copies a message of its own size in both directions and
//! ignores the caller's size, so the buffer is many times larger than the message of any known
//! version. Upstream's driver has no such file and needs none: every read asks the device.
#![expect(unsafe_code, reason = "an ioctl needs a raw call")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `enum erdma_cmd`, `enum erdma_stat_type`.
const STAT: libc::c_ulong = 3;
const STAT_DEV: u32 = 2;
/// Message size in bytes of the known version. It is part of the request number.
const MESSAGE_BYTES: usize = 4_144;
/// `_IOWR('k', STAT, struct erdma_ioctl_msg)`.
const REQUEST: libc::c_ulong =
    (3 << 30) | ((MESSAGE_BYTES as libc::c_ulong) << 16) | (0x6b << 8) | STAT;
/// Time after which a driver that refused is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Buffer size in words of 8 bytes: 64 KiB.
const BUFFER_WORDS: usize = 8 << 10;
/// Offsets in the message: the device name with its NUL, and the returned status.
const NAME: std::ops::Range<usize> = 4..25;
const STATUS: usize = 40;

/// The driver's device file, opened on first use.
#[derive(Debug)]
pub(super) struct ErdmaDriver {
    path: PathBuf,
    file: Option<File>,
    /// Why the driver refused, and when to ask again.
    refusal: Option<(String, Duration)>,
}

impl ErdmaDriver {
    pub(super) fn new(path: &Path) -> ErdmaDriver {
        ErdmaDriver { path: path.to_owned(), file: None, refusal: None }
    }

    /// Why counters cannot be refreshed; `None` until a refresh fails.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_ref().map(|(why, _)| why.as_str())
    }

    /// Makes the device write its counters where a read finds them. Returns whether it did.
    pub(super) fn refresh(&mut self, at: Duration, device: &str) -> bool {
        if self.refusal.as_ref().is_some_and(|(_, until)| at < *until) {
            return false;
        }
        match self.ask(device) {
            Ok(()) => {
                self.refusal = None;
                true
            }
            Err(error) => {
                let why = format!("{}: {error}", self.path.display());
                self.refusal = Some((why, at + RETRY_INTERVAL));
                false
            }
        }
    }

    fn ask(&mut self, device: &str) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new().read(true).write(true).open(&self.path)?,
        };
        let mut buffer = message(device)?;
        // SAFETY: the request reads and writes one message at the pointer; the buffer is zeroed,
        // aligned for it, and larger than the message of any known version of the driver.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), REQUEST as _, buffer.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        self.file = Some(file);
        match status(&buffer) {
            0 => Ok(()),
            status => Err(io::Error::other(format!(
                "the erdma driver returned status {status}; expected 0"
            ))),
        }
    }
}

/// A `struct erdma_ioctl_msg` that requests a device's counters.
fn message(device: &str) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0u8; NAME.end];
    bytes[..4].copy_from_slice(&STAT_DEV.to_ne_bytes());
    let name = bytes[NAME].get_mut(..device.len()).filter(|_| device.len() < NAME.len());
    let name = name.ok_or_else(|| io::Error::other("the device name is longer than 20 bytes"))?;
    name.copy_from_slice(device.as_bytes());
    bytes.resize(BUFFER_WORDS * 8, 0);
    let words = bytes.as_chunks::<8>().0.iter();
    Ok(words.map(|word| u64::from_ne_bytes(*word)).collect())
}

fn status(buffer: &[u64]) -> i32 {
    let word = buffer.get(STATUS / 8).copied().unwrap_or_default().to_ne_bytes();
    i32::from_ne_bytes([word[0], word[1], word[2], word[3]])
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree::Tree;
    use super::*;

    #[test]
    fn the_message_names_the_device() {
        let words = message("erdma_0").expect("a message");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes.len(), 64 << 10);
        assert_eq!(bytes[..4], 2u32.to_ne_bytes());
        assert_eq!(&bytes[4..12], b"erdma_0\0");
        assert!(bytes[12..].iter().all(|byte| *byte == 0));
        assert!(message("a_name_of_20_letters").is_ok());
        assert!(message("a_name_of_21_letters_").is_err());
        // _IOC_SIZE, _IOC_TYPE and _IOC_NR of the request.
        assert_eq!((REQUEST >> 16) & 0x3fff, 4_144);
        assert_eq!(((REQUEST >> 8) & 0xff, REQUEST & 0xff), (0x6b, 3));
    }

    #[test]
    fn a_status_that_is_not_zero_is_an_error() {
        let mut words = message("erdma_0").expect("a message");
        assert_eq!(status(&words), 0);
        words[STATUS / 8] = u64::from((-22i32).cast_unsigned());
        assert_eq!(status(&words), -22);
    }

    #[test]
    fn a_refusal_is_reported_and_retried_after_the_interval() {
        let tree = Tree::new();
        let (now, soon) = (Duration::from_secs(1), Duration::from_secs(2));
        let mut driver = ErdmaDriver::new(&tree.root().join("erdma"));
        assert!(!driver.refresh(now, "erdma_0"));
        let missing = driver.refusal().expect("a reason").to_owned();
        assert!(missing.contains("erdma"), "{missing}");
        tree.write("erdma", "");
        assert!(!driver.refresh(soon, "erdma_0"));
        assert_eq!(driver.refusal(), Some(&*missing), "not retried yet");
        assert!(!driver.refresh(now + RETRY_INTERVAL, "erdma_0"), "a plain file has no such ioctl");
        assert_ne!(driver.refusal(), Some(&*missing));
    }
}
