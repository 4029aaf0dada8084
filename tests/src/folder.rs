//! A folder of one test, removed with it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A new, empty folder under the system's folder for temporary files; removed on drop.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// # Panics
    /// The folder cannot be made.
    #[must_use]
    pub fn new(purpose: &str) -> Folder {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("pd-router-{purpose}-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Folder { path },
                // Left by a process that was killed and had the same id.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("making {}: {error}", path.display()),
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is left for the system's own clean-up.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
