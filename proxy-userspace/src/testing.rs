//! Network namespaces for tests: each is a thread with mounts of its own, and goes when the value
//! goes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own, with loopback up.
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: Pid,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("make a network namespace (as root)");
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .expect("keep mounts here");
            tell.send(gettid()).expect("the creator waits");
            inbox.into_iter().for_each(|job| job());
        });
        let tid = told.recv().expect("the namespace's thread lives");
        let namespace = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            tid,
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `job` in the namespace and returns its result; the caller gets its panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job =
            move || drop(tell.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))));
        self.jobs
            .as_ref()
            .expect("not dropped yet")
            .send(Box::new(job))
            .expect("the namespace's thread lives");
        told.recv()
            .expect("the job answers")
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A directory for an agent's state; what is mounted there is gone with the namespace.
    pub fn state_dir(&self) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("portway-test-{}", self.tid));
        std::fs::create_dir_all(&dir).expect("make a directory");
        dir
    }

    /// Runs `ip` with these arguments in the namespace; fails where it fails.
    pub fn ip(&self, arguments: &str) {
        self.command("ip", arguments);
    }

    /// Runs a program with these arguments in the namespace and gives what it prints; fails where
    /// it fails.
    pub fn command(&self, program: &'static str, arguments: &str) -> String {
        let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
        self.run(move || {
            let output = Command::new(program)
                .args(&arguments)
                .output()
                .unwrap_or_else(|e| panic!("start {program}: {e}"));
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "{program} {}: {error}",
                arguments.join(" ")
            );
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Makes a veth pair: `here` in this namespace, `there` in the other; both up.
    pub fn veth(&self, here: &str, other: &Self, there: &str) {
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {}",
            other.tid
        ));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }

    /// Runs a future to its end in the namespace.
    pub fn block_on<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("make a runtime");
            runtime.block_on(future)
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been handed to the caller already.
            let _ended = thread.join();
        }
        // Not every namespace has had one.
        let _removed =
            std::fs::remove_dir(std::env::temp_dir().join(format!("portway-test-{}", self.tid)));
    }
}
