//! The socket hooks: pinned links to the cgroup of the processes that they serve.
//!
//! Where they cannot be attached the agent goes on without, and logs why. A program that replaces
//! an earlier agent's does so in one step.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use proxy_common::socket::INITIAL_NETNS;
use tracing::{info, warn};

use super::cgroups::{Cgroup, CgroupChoice, path_of};
use super::statedir::{StateDir, names_in, remove};

/// The programs; each carries the name of its place, and so does its pin. Who restores a name comes
/// before who makes it needed.
pub const PROGRAMS: [&str; 8] = [
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// The global that holds the cookie of our network namespace.
const NETNS: &str = "NETNS";
/// The global that says how processes are refused.
const REFUSED: &str = "REFUSED";
/// First kernel with bpf_set_retval: a program chooses the error of a system call. Before, the
/// error is EPERM.
const SET_RETVAL: KernelVersion = KernelVersion::new(5, 18, 0);
/// `SO_NETNS_COOKIE` (5.14), which libc does not have yet.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// A setting that the initial network namespace alone shows.
const OF_THE_INITIAL_ONE: &str = "/proc/sys/net/core/dev_weight";

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The globals of the loaded programs.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    netns: u64,
    refused: i32,
}

impl Globals {
    /// For the network namespace of this process.
    ///
    /// # Errors
    /// If the kernel does not tell which one that is, and it is not the initial one either.
    pub fn here() -> Result<Self> {
        let kernel = KernelVersion::current().context("ask for the kernel's version")?;
        Ok(Self {
            netns: netns()?,
            refused: if kernel < SET_RETVAL {
                0
            } else {
                -libc::ECONNREFUSED
            },
        })
    }

    /// Sets the globals of the programs that `loader` will load.
    pub fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global(NETNS, &self.netns, true);
        loader.override_global(REFUSED, &self.refused, true);
    }
}

/// The network namespace of this thread, as the programs know it.
fn netns() -> Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"));
    let socket = socket.context("open a socket to ask for its network namespace")?;
    let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the option is a u64, and so is what it is written to.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match code {
        0 => Ok(cookie),
        _ if Path::new(OF_THE_INITIAL_ONE).exists() => Ok(INITIAL_NETNS),
        _ => bail!(
            "this kernel does not tell network namespaces apart (5.14), and this is not the host's"
        ),
    }
}

/// The state of the socket hooks.
#[derive(Debug)]
pub enum SocketHooks {
    /// They will be, once the tables are filled.
    Ready(Cgroup),
    /// They are.
    Attached,
    /// They are not, and this is why.
    Absent(String),
}

impl SocketHooks {
    /// Finds the cgroup and has the verifier take the programs; what does not succeed is said in
    /// the log.
    pub fn prepare(ebpf: &mut Ebpf, choice: &CgroupChoice, globals: &Result<Globals>) -> Self {
        if *choice == CgroupChoice::Off {
            info!("no socket hooks are wanted: processes of this node reach Services by packets");
            return Self::Absent("--cgroup off".into());
        }
        match find(choice, globals).and_then(|cgroup| load(ebpf).map(|()| cgroup)) {
            Ok(cgroup) => Self::Ready(cgroup),
            Err(error) => Self::absent(&error),
        }
    }

    fn absent(error: &anyhow::Error) -> Self {
        let why = format!("{error:#}");
        warn!(
            why,
            "no socket hooks: processes of this node reach Services by packets"
        );
        Self::Absent(why)
    }

    /// Attaches the programs, or takes those of an earlier agent away that are not wanted any more.
    /// Once is enough.
    pub fn attach(&mut self, ebpf: &mut Ebpf, dir: &StateDir) -> Result<()> {
        let cgroup = match self {
            Self::Attached => return Ok(()),
            Self::Absent(_) => return detach(dir),
            Self::Ready(cgroup) => cgroup,
        };
        *self = match attach_all(ebpf, dir, cgroup) {
            Ok(()) => {
                info!(cgroup = %cgroup, "processes of this node are served by their sockets");
                Self::Attached
            }
            // All or none: whoever is sent to a backend has to know it by the name that it asked
            // for.
            Err(error) => {
                detach(dir)?;
                Self::absent(&error)
            }
        };
        Ok(())
    }

    /// Why they are not there.
    pub fn why_not(&self) -> Option<&str> {
        match self {
            Self::Absent(why) => Some(why),
            Self::Ready(_) | Self::Attached => None,
        }
    }
}

fn find(choice: &CgroupChoice, globals: &Result<Globals>) -> Result<Cgroup> {
    if let Err(error) = globals {
        bail!("{error:#}");
    }
    match choice {
        CgroupChoice::At(path) => Cgroup::at(path),
        CgroupChoice::Auto | CgroupChoice::Off => Cgroup::root(),
    }
}

fn load(ebpf: &mut Ebpf) -> Result<()> {
    for name in PROGRAMS {
        let program = program(ebpf, name)?;
        program
            .load()
            .with_context(|| format!("load the program {name}"))?;
        let facts = program.info().context("ask for a program's facts")?;
        info!(
            program = name,
            id = facts.id(),
            instructions = facts.verified_instruction_count(),
            "the verifier took it"
        );
    }
    Ok(())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya's list of program types is long; the object has these only"
)]
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr> {
    match ebpf
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}"))?
    {
        Program::CgroupSockAddr(program) => Ok(program),
        _ => bail!("the program {name} is of another type"),
    }
}

fn attach_all(ebpf: &mut Ebpf, dir: &StateDir, cgroup: &Cgroup) -> Result<()> {
    for name in PROGRAMS {
        attach(program(ebpf, name)?, cgroup, &dir.sockets().join(name))
            .with_context(|| format!("attach {name} to the cgroup {cgroup}"))?;
    }
    Ok(())
}

fn attach(program: &mut CgroupSockAddr, cgroup: &Cgroup, pin: &Path) -> Result<()> {
    if pin.exists() {
        let link = open(pin).context("open the pinned link")?;
        // aya does not replace programs of such links.
        if facts(&link)?.cgroup == cgroup.id
            && replace(&link, program.fd()?.as_fd())? == Replaced::Yes
        {
            return Ok(());
        }
        remove(pin)?;
    }
    let id = program.attach::<&File>(&cgroup.file, CgroupAttachMode::Single)?;
    let link = FdLink::try_from(program.take_link(id)?)
        .map_err(|_| anyhow!("this kernel has no links of cgroups (5.7)"))?;
    link.pin(pin).map(drop).context("pin the link")
}

/// Takes the hooks of whatever agent away. Connections stay: their packets are nobody's business.
pub fn detach(dir: &StateDir) -> Result<()> {
    let pins = names_in(&dir.sockets())?;
    // The other way round than they were attached.
    let known = PROGRAMS
        .iter()
        .rev()
        .filter(|name| pins.iter().any(|pin| pin == *name))
        .map(|name| (*name).to_owned());
    let others = pins
        .iter()
        .filter(|pin| !PROGRAMS.contains(&pin.as_str()))
        .cloned();
    for name in known.chain(others).collect::<Vec<_>>() {
        let pin = dir.sockets().join(name);
        // Without its pin alone a link goes some time later, and no one knows in which order.
        if let Err(error) = open(&pin).and_then(|link| cut(&link)) {
            warn!(
                error = format!("{error:#}"),
                "a socket hook may outlive its pin for a moment"
            );
        }
        remove(&pin)?;
    }
    if !pins.is_empty() {
        info!(hooks = pins.len(), "the socket hooks are detached");
    }
    Ok(())
}

/// The socket hooks of a state directory: by name, with the program's id.
pub fn attached(dir: &StateDir) -> Result<Vec<(String, Option<u32>)>> {
    let program = |name: &String| Some(facts(&open(&dir.sockets().join(name)).ok()?).ok()?.program);
    Ok(names_in(&dir.sockets())?
        .into_iter()
        .map(|name| (name.clone(), program(&name)))
        .collect())
}

/// The cgroup that they are attached to, in words; none if they are not.
pub fn attached_to(dir: &StateDir) -> Option<String> {
    let name = names_in(&dir.sockets()).ok()?.into_iter().next()?;
    match facts(&open(&dir.sockets().join(name)).ok()?).ok()?.cgroup {
        0 => Some("a cgroup that is gone".to_owned()),
        id => Some(path_of(id).map_or_else(
            || format!("the cgroup {id}"),
            |path| path.display().to_string(),
        )),
    }
}

/// The beginning of `struct bpf_link_info` of a cgroup's link.
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// Its number; 0 if it is gone.
    cgroup: u64,
    attach_type: u32,
    end: u32,
}

/// The part of `union bpf_attr` that asks for it.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The part of `union bpf_attr` that replaces a link's program.
#[repr(C)]
struct UpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part of `union bpf_attr` that detaches a link.
#[repr(C)]
struct DetachAttr {
    link: u32,
}

/// The part of `union bpf_attr` that opens what is pinned.
#[repr(C)]
struct OpenAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn open(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).context("name a pin")?;
    let attr = OpenAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the attribute has the kernel's layout, and leads to a path that ends with a zero.
    let fd = unsafe { command(BPF_OBJ_GET, &attr) }
        .with_context(|| format!("open {}", pin.display()))?;
    // SAFETY: the kernel has given it to us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn facts(link: &OwnedFd) -> Result<LinkInfo> {
    // SAFETY: plain integers.
    let mut info: LinkInfo = unsafe { zeroed() };
    let attr = InfoAttr {
        fd: link.as_raw_fd() as u32,
        len: offset_of!(LinkInfo, end) as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attribute has the kernel's layout, and leads to as many bytes as it says.
    unsafe { command(BPF_OBJ_GET_INFO_BY_FD, &attr) }.context("ask for a link's cgroup")?;
    Ok(info)
}

#[derive(PartialEq, Eq)]
enum Replaced {
    Yes,
    /// The cgroup is gone.
    Gone,
}

fn replace(link: &OwnedFd, program: BorrowedFd<'_>) -> Result<Replaced> {
    let attr = UpdateAttr {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attribute has the kernel's layout, and no pointer.
    match unsafe { command(BPF_LINK_UPDATE, &attr) } {
        Ok(_) => Ok(Replaced::Yes),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(Replaced::Gone),
        Err(error) => Err(error).context("replace the program of the link"),
    }
}

/// Detaches the program of a link, before this returns.
fn cut(link: &OwnedFd) -> Result<()> {
    let attr = DetachAttr {
        link: link.as_raw_fd() as u32,
    };
    // SAFETY: the attribute has the kernel's layout, and no pointer.
    unsafe { command(BPF_LINK_DETACH, &attr) }
        .map(drop)
        .context("detach a link")
}

/// # Safety
/// The attribute must be what the command wants.
unsafe fn command<A>(number: libc::c_long, attr: &A) -> io::Result<i32> {
    // SAFETY: the caller vouches for the attribute.
    let code = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            number,
            std::ptr::from_ref(attr),
            size_of::<A>(),
        )
    };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(code as i32)
    }
}
