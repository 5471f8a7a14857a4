//! The real object, loaded, and one packet at a time through its programs.

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{
    CgroupSockAddr, ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions, Xdp,
};
use aya::util::{KernelVersion, nr_cpus};
use aya::{Ebpf, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use portway::dataplane::{Globals, SOCKET_PROGRAMS};
use proxy_common::net::IfIndex;
use proxy_common::policy::{CHUNKS_LARGE, NODES_LARGE};
use proxy_common::reason::{COUNTERS, Reason};
use proxy_ebpf::Action;

/// The tc programs.
pub const PROGRAMS: [&str; 5] = ["from_device", "from_pod", "to_pod", "to_device", "now"];
/// The XDP programs; the second one is for kernels that know frames in several buffers.
pub const XDP: [&str; 2] = ["portway_xdp", "portway_xdp_frags"];
/// Capacity of the established tables: small, so that they are full sometimes.
pub const CAPACITY: u32 = 16;

/// First kernel with `xdp.frags`; those since 5.15 take a context for XDP test runs.
const FRAGS: KernelVersion = KernelVersion::new(5, 18, 0);
/// First kernel that charges maps to the memory cgroup; older ones use a limit of the process that
/// not every root may raise.
const MEMCG: KernelVersion = KernelVersion::new(5, 11, 0);
/// The loopback device, which XDP test runs without a context use.
const LOOPBACK: IfIndex = IfIndex(1);

/// Offsets in `__sk_buff` of the device and of `cb`.
const SKB_IFINDEX: usize = 40;
const SKB_CB: usize = 48;
/// Room for a packet that comes out: longer than any that goes in.
const ROOM: usize = 4096;

/// The hooks of the programs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hook {
    Xdp,
    FromDevice,
    FromPod,
    ToPod,
    ToDevice,
}

impl Hook {
    pub const ALL: [Self; 5] = [
        Self::Xdp,
        Self::FromDevice,
        Self::FromPod,
        Self::ToPod,
        Self::ToDevice,
    ];

    fn program(self) -> &'static str {
        match self {
            Self::Xdp => "portway_xdp",
            Self::FromDevice => "from_device",
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::ToDevice => "to_device",
        }
    }
}

/// The object in the kernel, with maps of its own.
pub struct Loaded {
    pub ebpf: Ebpf,
    frags: bool,
}

impl Loaded {
    /// Loads every program that this kernel supports, as an agent with default logging does.
    pub fn new() -> Result<Self> {
        Self::logging(0)
    }

    /// Loads them with the packet path's log at a level of `aya_log::Level`, 0 for none.
    pub fn logging(level: u8) -> Result<Self> {
        Self::sized(
            level,
            &[
                ("FLOWS4", CAPACITY),
                ("FLOWS6", CAPACITY),
                ("OPENING4", 4096),
                ("OPENING6", 4096),
            ],
        )
    }

    /// With tables of the size that the agent uses.
    pub fn of_full_size() -> Result<Self> {
        Self::sized(0, &[])
    }

    /// With the large policy tables besides.
    pub fn of_large_size() -> Result<Self> {
        Self::sized(0, &[("CLASSES4", NODES_LARGE), ("MATRIX", CHUNKS_LARGE)])
    }

    fn sized(level: u8, sizes: &[(&str, u32)]) -> Result<Self> {
        Self::object(
            aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portway-ebpf")),
            level,
            sizes,
        )
    }

    /// Another object, of a version with the same maps, with tables of the size that the agent
    /// uses.
    pub fn other(object: &[u8]) -> Result<Self> {
        Self::object(object, 0, &[])
    }

    fn object(object: &[u8], level: u8, sizes: &[(&str, u32)]) -> Result<Self> {
        let kernel = KernelVersion::current().context("ask for the kernel's version")?;
        if kernel < MEMCG {
            setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
                .context("raise the limit of locked memory")?;
        }
        let mut loader = EbpfLoader::new();
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        loader.override_global("AYA_LOG_LEVEL", &level, true);
        // On kernels without network namespace cookies these tests only load the socket hooks.
        let globals = Globals::here();
        if let Ok(globals) = &globals {
            globals.set(&mut loader);
        }
        let mut ebpf = loader.load(object).context("load the object")?;
        for name in PROGRAMS {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .context("find a program")?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let frags = kernel >= FRAGS;
        for name in if frags { &XDP[..] } else { &XDP[..1] } {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .context("find a program")?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        for name in SOCKET_PROGRAMS {
            let program: &mut CgroupSockAddr = ebpf
                .program_mut(name)
                .context("find a program")?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(Self { ebpf, frags })
    }

    /// Returns the kernel's information on a program; `None` if it was not loaded.
    pub fn info(&self, name: &str) -> Result<Option<ProgramInfo>> {
        if name == XDP[1] && !self.frags {
            return Ok(None);
        }
        self.ebpf
            .program(name)
            .context("find a program")?
            .info()
            .map(Some)
            .context("ask for a program")
    }

    /// Runs a tc program over a packet that belongs to `device`; what it decided, and the packet
    /// then.
    pub fn tc(
        &self,
        hook: Hook,
        device: IfIndex,
        bytes: &[u8],
    ) -> Result<(Result<Action, Reason>, Vec<u8>)> {
        let (code, out, cb) = self.classify(hook.program(), device, bytes)?;
        let said = said(cb)?;
        ensure!(
            code == code_of(said),
            "{hook:?} returned {code} for {said:?}"
        );
        Ok((said, out))
    }

    /// Runs a tc program many times over a packet that it lets pass; nanoseconds of each run.
    pub fn time(&self, hook: Hook, device: IfIndex, bytes: &[u8], repeat: u32) -> Result<u32> {
        let program: &SchedClassifier = self
            .ebpf
            .program(hook.program())
            .context("find a program")?
            .try_into()?;
        let mut ctx_in = [0; 192];
        ctx_in[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&device.0.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(bytes),
            ctx_in: Some(&ctx_in),
            repeat,
            ..TestRunOptions::default()
        };
        let ran = program
            .test_run(options)
            .with_context(|| format!("run {} {repeat} times", hook.program()))?;
        ensure!(
            ran.return_value as i32 == code_of(Ok(Action::Untouched)),
            "{hook:?} returned {}",
            ran.return_value
        );
        Ok(ran.duration.as_nanos() as u32)
    }

    /// Nanoseconds of one run of a tc program over a packet, whatever becomes of it.
    pub fn time_once(&self, hook: Hook, device: IfIndex, bytes: &[u8]) -> Result<u32> {
        let program: &SchedClassifier = self
            .ebpf
            .program(hook.program())
            .context("find a program")?
            .try_into()?;
        let mut ctx_in = [0; 192];
        ctx_in[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&device.0.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(bytes),
            ctx_in: Some(&ctx_in),
            ..TestRunOptions::default()
        };
        Ok(program
            .test_run(options)
            .with_context(|| format!("run {}", hook.program()))?
            .duration
            .as_nanos() as u32)
    }

    fn classify(
        &self,
        name: &str,
        device: IfIndex,
        bytes: &[u8],
    ) -> Result<(i32, Vec<u8>, [u32; 2])> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .context("find a program")?
            .try_into()?;
        let (mut ctx_in, mut ctx_out, mut out) = ([0; 192], [0; 256], vec![0; ROOM]);
        ctx_in[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&device.0.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx_in),
            ctx_out: Some(&mut ctx_out),
            ..TestRunOptions::default()
        };
        let ran = program
            .test_run(options)
            .with_context(|| format!("run {name} over {} bytes", bytes.len()))?;
        out.truncate(ran.data_size_out as usize);
        Ok((
            ran.return_value as i32,
            out,
            [number(&ctx_out[SKB_CB..]), number(&ctx_out[SKB_CB + 4..])],
        ))
    }

    /// Runs XDP over a frame that `device` received; its verdict, and the frame then.
    pub fn xdp(&self, device: IfIndex, bytes: &[u8]) -> Result<(u32, Vec<u8>)> {
        let name = if self.frags { XDP[1] } else { XDP[0] };
        let program: &Xdp = self
            .ebpf
            .program(name)
            .context("find a program")?
            .try_into()?;
        let mut out = vec![0; ROOM];
        // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, bytes.len() as u32, 0, device.0, 0, 0]
            .map(u32::to_ne_bytes)
            .concat();
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ctx_in: if self.frags { Some(&context) } else { None },
            ..TestRunOptions::default()
        };
        let ran = program
            .test_run(options)
            .with_context(|| format!("run {name} over {} bytes", bytes.len()))?;
        out.truncate(ran.data_size_out as usize);
        Ok((ran.return_value, out))
    }

    /// The device that XDP sees when it is run for `device`.
    pub fn xdp_device(&self, device: IfIndex) -> IfIndex {
        if self.frags { device } else { LOOPBACK }
    }

    /// Low 32 bits of jiffies.
    pub fn now(&self) -> Result<u32> {
        let (_, _, [now, _]) = self.classify("now", LOOPBACK, &[0; 64])?;
        Ok(now)
    }

    /// Sets every CPU's count of refusals in the second that began at `since`.
    pub fn set_refusals(&mut self, since: u32, sent: u32) -> Result<()> {
        let [a, b] = [since, sent].map(u32::to_ne_bytes);
        let bucket = u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
        self.set_per_cpu("ANSWERS", 0, bucket)
    }

    fn set_per_cpu(&mut self, map: &str, index: u32, value: u64) -> Result<()> {
        let mut array: PerCpuArray<_, u64> =
            self.ebpf.map_mut(map).context("find a map")?.try_into()?;
        let cpus = nr_cpus()
            .map_err(|(_, why)| why)
            .context("count the CPUs")?;
        let values = PerCpuValues::try_from(vec![value; cpus]).context("give each CPU a value")?;
        array
            .set(index, values, 0)
            .with_context(|| format!("set {map}"))
    }

    /// Sets all counters to zero.
    pub fn reset_counters(&mut self) -> Result<()> {
        (0..COUNTERS).try_for_each(|index| self.set_per_cpu("COUNTERS", index, 0))
    }

    /// A counter, all CPUs together.
    pub fn counter(&self, index: u32) -> Result<u64> {
        let array: PerCpuArray<_, u64> = self
            .ebpf
            .map("COUNTERS")
            .context("find a map")?
            .try_into()?;
        Ok(array.get(&index, 0).context("read a counter")?.iter().sum())
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Returns the action that a program left in `cb`.
fn said([action, detail]: [u32; 2]) -> Result<Result<Action, Reason>> {
    let device = IfIndex(detail);
    Ok(match action {
        1 => Ok(Action::Untouched),
        2 => Ok(Action::Stack),
        3 => Ok(Action::Pod(device)),
        4 => Ok(Action::Neighbour(device)),
        5 => Ok(Action::Transmit(device)),
        7 => Ok(Action::Return(device)),
        8 => Ok(Action::Enter(device)),
        6 => Err(*Reason::ALL
            .get(detail as usize)
            .context("understand the reason in cb")?),
        // Another EtherType: the program returned without a verdict.
        0 => Ok(Action::Untouched),
        other => bail!("no such action: {other}"),
    })
}

/// Returns tc's return code.
fn code_of(said: Result<Action, Reason>) -> i32 {
    match said {
        Ok(Action::Untouched) => -1,
        Ok(Action::Stack) => 0,
        Err(_) => 2,
        Ok(
            Action::Pod(_)
            | Action::Neighbour(_)
            | Action::Transmit(_)
            | Action::Return(_)
            | Action::Enter(_),
        ) => 7,
    }
}
