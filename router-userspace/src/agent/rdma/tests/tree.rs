//! A temporary sysfs and proc tree for tests.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Tree {
    root: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Tree {
    pub(crate) fn new() -> Tree {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pd-router-rdma-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&root).expect("a folder");
        Tree { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }

    /// An erdma device on `eth1`, whose GUID is made of that interface's address.
    pub(crate) fn erdma(&self, name: &str, counters: &[(&str, u64)]) {
        let device = format!("class/infiniband/{name}");
        self.write(&format!("{device}/node_guid"), "0216:3eff:fe00:0102\n");
        self.write(&format!("{device}/node_type"), "4: RNIC\n");
        self.write(&format!("{device}/ports/1/state"), "4: ACTIVE\n");
        self.write(&format!("{device}/ports/1/rate"), "2.5 Gb/sec (1X SDR)\n");
        self.write(&format!("{device}/ports/1/hw_counters/lifespan"), "10\n");
        for (counter, value) in counters {
            self.write(&format!("{device}/ports/1/hw_counters/{counter}"), &format!("{value}\n"));
        }
        self.write(&format!("{device}/device/vendor"), "0x1ded\n");
        let driver = self.root.join(&device).join("device/driver");
        _ = symlink("../../../../bus/pci/drivers/erdma", driver);
        self.write("class/net/eth1/address", "00:16:3e:00:01:02\n");
        self.write("class/net/eth1/ifindex", "3\n");
        self.write("class/net/eth1/speed", "-1\n");
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.root);
    }
}
