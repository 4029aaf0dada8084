//! Asks erdma's installer driver to fetch a device's counters, as `eadm stat` does.
//!
//! The driver that Alibaba Cloud's installer builds (erdma_ioctl.h there, as in the kernels of
//! OpenAnolis) has a file `/dev/erdma`. Its `STAT_DEV` makes the device write its counters where
//! reads by netlink and sysfs then find them; so the answer's own layout, which differs between
//! versions, is not needed. The driver copies a message of its own size both ways and does not look
//! at the caller's: the buffer is therefore many times larger than any known version's message.
//! Upstream's driver has no such file, and needs none: every read asks the device.
#![expect(unsafe_code, reason = "an ioctl has no other door")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `enum erdma_cmd`, `enum erdma_stat_type`.
const STAT: libc::c_ulong = 3;
const STAT_DEV: u32 = 2;
/// Bytes of the message of the version that is known, which are part of the request's number.
const MESSAGE: usize = 4_144;
/// `_IOWR('k', STAT, struct erdma_ioctl_msg)`.
const REQUEST: libc::c_ulong = (3 << 30) | ((MESSAGE as libc::c_ulong) << 16) | (0x6b << 8) | STAT;
/// A driver that refused is asked again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// Words of the buffer: 64 KiB.
const ROOM: usize = 8 << 10;
/// Where the name of the device goes (NUL and all), and where the status comes back.
const NAME: std::ops::Range<usize> = 4..25;
const STATUS: usize = 40;

/// The driver's file, opened when it is needed first.
#[derive(Debug)]
pub(super) struct Driver {
    path: PathBuf,
    file: Option<File>,
    /// Why it is not asked, and until when.
    refusal: Option<(String, Duration)>,
}

impl Driver {
    pub(super) fn new(path: &Path) -> Driver {
        Driver { path: path.to_owned(), file: None, refusal: None }
    }

    /// Why nothing can be refreshed, once that was tried.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_ref().map(|(why, _)| why.as_str())
    }

    /// Makes the device write its counters where a read finds them; whether it did.
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
                self.refusal = Some((why, at + AGAIN));
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
            status => Err(io::Error::other(format!("the driver answers with status {status}"))),
        }
    }
}

/// `struct erdma_ioctl_msg` that asks for a device's counters.
fn message(device: &str) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0u8; NAME.end];
    bytes[..4].copy_from_slice(&STAT_DEV.to_ne_bytes());
    let name = bytes[NAME].get_mut(..device.len()).filter(|_| device.len() < NAME.len());
    let name = name.ok_or_else(|| io::Error::other("a device name that is too long"))?;
    name.copy_from_slice(device.as_bytes());
    bytes.resize(ROOM * 8, 0);
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
    fn the_question_names_the_device() {
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
    fn a_file_that_is_missing_or_another_is_said_and_asked_again_much_later() {
        let tree = Tree::new();
        let (now, soon) = (Duration::from_secs(1), Duration::from_secs(2));
        let mut driver = Driver::new(&tree.root().join("erdma"));
        assert!(!driver.refresh(now, "erdma_0"));
        let missing = driver.refusal().expect("a reason").to_owned();
        assert!(missing.contains("erdma"), "{missing}");
        tree.write("erdma", "");
        assert!(!driver.refresh(soon, "erdma_0"));
        assert_eq!(driver.refusal(), Some(&*missing), "it was not asked");
        assert!(!driver.refresh(now + AGAIN, "erdma_0"), "a plain file knows no such request");
        assert_ne!(driver.refusal(), Some(&*missing));
    }
}
