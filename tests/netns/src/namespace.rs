//! A network namespace, kept by a thread that lives in it. It ends with the thread, and the thread
//! with the process: nothing is left behind, however that ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. It is removed when this value is dropped and no process is left in it.
#[derive(Debug)]
pub struct Namespace {
    jobs: Sender<Job>,
    handle: File,
    /// A process of its own, as a pod has: /proc shows a namespace by its processes. It reads a pipe
    /// from this process, and so ends with it.
    process: Child,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        _ = self.process.wait();
    }
}

impl Namespace {
    /// A network namespace with loopback up.
    ///
    /// # Panics
    /// It cannot be made: root is needed.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "making one has effects and can fail")]
    pub fn new() -> Namespace {
        Namespace::try_new().expect("making a network namespace, for which root is needed")
    }

    /// A network namespace with loopback up.
    ///
    /// # Errors
    /// It cannot be made: root is needed, and a kernel or container that allows it.
    pub fn try_new() -> io::Result<Namespace> {
        Namespace::with(CloneFlags::CLONE_NEWNET)
    }

    /// A node: a network namespace with mounts of its own, a bpf file system among them.
    ///
    /// # Panics
    /// As [`Namespace::new`], or nothing can be mounted.
    #[must_use]
    pub fn node() -> Namespace {
        Namespace::with_mounts(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
    }

    /// The machine's own network, with mounts as [`Namespace::node`] has.
    ///
    /// # Panics
    /// As [`Namespace::node`].
    #[must_use]
    pub fn machine() -> Namespace {
        Namespace::with_mounts(CloneFlags::CLONE_NEWNS)
    }

    fn with_mounts(flags: CloneFlags) -> Namespace {
        let netns = Namespace::with(flags).expect("making namespaces, for which root is needed");
        netns.run(|| {
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).expect("making mounts private");
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
                .expect("mounting a bpf file system");
        });
        netns
    }

    fn with(flags: CloneFlags) -> io::Result<Namespace> {
        let (jobs, inbox) = channel::<Job>();
        let (made, result) = channel();
        std::thread::spawn(move || {
            let entered = enter_new(flags);
            let is_made = entered.is_ok();
            if made.send(entered).is_err() || !is_made {
                return;
            }
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        let (handle, process) = result.recv().expect("the namespace's thread does not panic")?;
        let netns = Namespace { jobs, handle, process };
        netns.try_sh("ip link set lo up")?;
        Ok(netns)
    }

    /// Runs `job` in the namespace and waits for what it returns.
    ///
    /// # Panics
    /// The job panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = Box::new(move || drop(done.send(job())));
        self.jobs.send(job).expect("the namespace's thread lives");
        result.recv().expect("the job panicked")
    }

    /// Runs a shell script in the namespace; what it printed on stdout.
    ///
    /// # Panics
    /// A command of it fails.
    pub fn sh(&self, script: &str) -> String {
        self.try_sh(script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a shell script in the namespace; what it printed on stdout.
    ///
    /// # Errors
    /// A command of it fails: the error has the script and what it printed on stderr.
    pub fn try_sh(&self, script: &str) -> io::Result<String> {
        let owned = script.to_owned();
        let output = self.run(move || Command::new("sh").args(["-ec", &owned]).output())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(io::Error::other(format!("`{script}`: {stderr}")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The namespace as a path that other processes can open.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }
}

/// Moves this thread into new namespaces: a handle of its network namespace, and a process there.
fn enter_new(flags: CloneFlags) -> io::Result<(File, Child)> {
    unshare(flags)?;
    let handle = File::open("/proc/thread-self/ns/net")?;
    let process = Command::new("cat").stdin(Stdio::piped()).spawn()?;
    Ok((handle, process))
}
