//! A network namespace, kept by a thread that lives in it. It ends with the thread, and the
//! thread with the test: nothing is left behind, whatever happens.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Space {
    jobs: Sender<Job>,
    namespace: File,
    /// A process of its own, as a pod has: /proc shows a namespace by its processes. It reads
    /// a pipe from us, and so ends with us.
    process: Child,
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        _ = self.process.wait();
    }
}

impl Space {
    /// A network namespace with loopback up.
    pub(crate) fn new() -> Space {
        Space::with(CloneFlags::CLONE_NEWNET)
    }

    /// One with mounts of its own, a bpf file system among them: a node.
    pub(crate) fn node() -> Space {
        Space::with_mounts(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
    }

    /// The machine's own network, with mounts as [`Space::node`] has.
    #[allow(dead_code, reason = "the bench has no such devices")]
    pub(crate) fn machine() -> Space {
        Space::with_mounts(CloneFlags::CLONE_NEWNS)
    }

    fn with_mounts(flags: CloneFlags) -> Space {
        let space = Space::with(flags);
        space.run(|| {
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).expect("making mounts private");
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
                .expect("mounting a bpf file system");
        });
        space
    }

    fn with(flags: CloneFlags) -> Space {
        let (jobs, inbox) = channel::<Job>();
        let (made, namespace) = channel();
        std::thread::spawn(move || {
            unshare(flags).expect("unsharing namespaces: root is needed");
            let namespace = File::open("/proc/thread-self/ns/net").expect("own namespace");
            let mut process = Command::new("cat");
            let process = process.stdin(Stdio::piped()).spawn().expect("a process");
            made.send((namespace, process)).expect("the maker waits");
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        let (namespace, process) = namespace.recv().expect("the namespace's thread");
        let space = Space { jobs, namespace, process };
        space.sh("ip link set lo up");
        space
    }

    /// Runs `job` in here and waits for what it returns.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = Box::new(move || drop(done.send(job())));
        self.jobs.send(job).expect("the namespace's thread lives");
        result.recv().expect("the job panicked")
    }

    /// Runs commands of the shell in here; they must end well.
    pub(crate) fn sh(&self, script: &str) -> String {
        let owned = script.to_owned();
        let output =
            self.run(move || Command::new("sh").args(["-ec", &owned]).output().expect("a shell"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{script}`: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The namespace as a path that other processes can open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }
}
