//! The hooks of sockets: processes of this node's own network namespace that connect, send or
//! receive.

use core::ffi::c_void;
use core::mem::zeroed;
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_ANY, bpf_sock, bpf_sock_addr, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use proxy_common::flow::FlowKey;
use proxy_common::net::{Addr4, Addr6, Address, Port, Protocol, V4, V6};
use proxy_common::reason::Reason;
use proxy_common::socket::{INITIAL_NETNS, Peer, PeerKey};
use proxy_ebpf::parse::Ip;
use proxy_ebpf::socket::{Ask, Sockets};

use super::helpers::count;
use super::maps::Maps;
use super::tables::KernelAddress;
use super::values::Kernel;

/// Cookie of the network namespace that is served, or [`INITIAL_NETNS`]. The agent sets it.
#[unsafe(no_mangle)]
static NETNS: u64 = INITIAL_NETNS;
/// Error that a refused process gets, as a negative errno; 0 if the kernel is older than 5.18 and
/// returns EPERM. The agent sets it.
#[unsafe(no_mangle)]
static REFUSED: i32 = 0;

/// The system call proceeds, with the address as it is now.
const PROCEED: i32 = 1;
/// The system call fails, with EPERM unless another error was set.
const FAIL: i32 = 0;
/// `BPF_F_CURRENT_NETNS`: the network namespace of the context's socket.
const CURRENT_NETNS: u64 = u64::MAX;
/// The third word of an IPv4 address in an IPv6 one; the first two are 0.
const MAPPED: u32 = 0xffff_u32.to_be();

/// The part of a socket lookup that differs between the families.
trait TupleAddress: Address {
    /// Writes a connection into the arguments of a socket lookup; returns their size in bytes.
    fn fill(tuple: &mut bpf_sock_tuple, key: &FlowKey<Self>) -> u32;
}

impl TupleAddress for Addr4 {
    #[inline(always)]
    fn fill(tuple: &mut bpf_sock_tuple, key: &FlowKey<Self>) -> u32 {
        // SAFETY: all members of the union are plain integers.
        let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        ipv4.saddr = key.src.word();
        ipv4.daddr = key.dst.word();
        ipv4.sport = key.sport.word() as u16;
        ipv4.dport = key.dport.word() as u16;
        size_of_val(ipv4) as u32
    }
}

impl TupleAddress for Addr6 {
    #[inline(always)]
    fn fill(tuple: &mut bpf_sock_tuple, key: &FlowKey<Self>) -> u32 {
        // SAFETY: all members of the union are plain integers.
        let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        ipv6.saddr = key.src.words();
        ipv6.daddr = key.dst.words();
        ipv6.sport = key.sport.word() as u16;
        ipv6.dport = key.dport.word() as u16;
        size_of_val(ipv6) as u32
    }
}

impl<F: Ip> Sockets<F> for Kernel
where
    Self: Maps<F, F::Addr>,
    F::Addr: KernelAddress + TupleAddress,
{
    #[inline(always)]
    fn peer(&self, key: &PeerKey<F::Addr>) -> Option<Peer<F::Addr>> {
        // SAFETY: the element lives as long as the program runs. The copy is torn only if the LRU
        // reuses the element meanwhile; the next datagram then asks anew.
        unsafe { Self::peers().get(key) }.copied()
    }
    #[inline(always)]
    fn remember(&self, key: &PeerKey<F::Addr>, peer: &Peer<F::Addr>) {
        // A failure costs a process the address that it asked for, not its connection.
        let _forgotten = Self::peers().insert(key, peer, BPF_ANY.into());
    }
    #[inline(always)]
    fn is_taken(&self, key: &FlowKey<F::Addr>) -> bool {
        // SAFETY: plain integers.
        let mut tuple: bpf_sock_tuple = unsafe { zeroed() };
        let len = F::Addr::fill(&mut tuple, key);
        self.has_socket(key.protocol, &mut tuple, len)
    }
}

impl Kernel {
    /// Returns true if a socket takes the packet: one that is connected so, one that listens, or a
    /// bound UDP socket.
    #[inline(always)]
    fn has_socket(&self, protocol: Protocol, tuple: *mut bpf_sock_tuple, len: u32) -> bool {
        // SAFETY: the context of this program, and a tuple of that size.
        let socket: *mut bpf_sock = unsafe {
            if protocol == Protocol::TCP {
                bpf_sk_lookup_tcp(self.context, tuple, len, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(self.context, tuple, len, CURRENT_NETNS, 0)
            }
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: it was found just now, and is released once.
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }
}

/// Returns true if the socket is in the network namespace that we serve: the hooks meet those of
/// all processes below the cgroup.
#[inline(always)]
fn is_ours(context: &SockAddrContext) -> bool {
    // SAFETY: a global of this program, which the loader has set.
    let ours = unsafe { ptr::read_volatile(&raw const NETNS) };
    // SAFETY: the context of this program, or null, which means the initial namespace.
    let (its, initial) = unsafe {
        (
            bpf_get_netns_cookie(context.as_ptr()),
            bpf_get_netns_cookie(ptr::null_mut()),
        )
    };
    its == if ours == INITIAL_NETNS { initial } else { ours }
}

#[inline(always)]
fn cookie(context: *mut c_void) -> [u32; 2] {
    // SAFETY: the context of this program.
    let cookie = unsafe { bpf_get_socket_cookie(context) };
    [cookie as u32, (cookie >> 32) as u32]
}

/// Loads one field of the context, by one load at a constant offset: the verifier accepts no other.
macro_rules! load {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: the context of this program; the kernel lets this hook read the field.
        unsafe { ptr::read_volatile(&raw const (*$context).$($field)+) }
    };
}

/// Stores one field of the context, by one store at a constant offset.
macro_rules! store {
    ($context:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: the context of this program; the kernel lets this hook write the field.
        unsafe { ptr::write_volatile(&raw mut (*$context).$($field)+, $value) }
    };
}

#[inline(always)]
fn port(context: *mut bpf_sock_addr) -> Port {
    Port::from_bytes((load!(context, user_port) as u16).to_ne_bytes())
}

#[inline(always)]
fn addr4(context: *mut bpf_sock_addr) -> Addr4 {
    Addr4::from_word(load!(context, user_ip4))
}

#[inline(always)]
fn addr6(context: *mut bpf_sock_addr) -> Addr6 {
    let (a, b) = (load!(context, user_ip6[0]), load!(context, user_ip6[1]));
    Addr6::from_words([
        a,
        b,
        load!(context, user_ip6[2]),
        load!(context, user_ip6[3]),
    ])
}

#[inline(always)]
fn set4(context: *mut bpf_sock_addr, (addr, port): (Addr4, Port)) {
    store!(context, addr.word(), user_ip4);
    store!(context, port.word(), user_port);
}

/// Writes the last word alone: the rest marks it as an IPv4 address already.
#[inline(always)]
fn set_mapped(context: *mut bpf_sock_addr, (addr, port): (Addr4, Port)) {
    store!(context, addr.word(), user_ip6[3]);
    store!(context, port.word(), user_port);
}

#[inline(always)]
fn set6(context: *mut bpf_sock_addr, (addr, port): (Addr6, Port)) {
    let [a, b, c, d] = addr.words();
    store!(context, a, user_ip6[0]);
    store!(context, b, user_ip6[1]);
    store!(context, c, user_ip6[2]);
    store!(context, d, user_ip6[3]);
    store!(context, port.word(), user_port);
}

/// Replaces the address that a process asks for by a backend, or refuses it.
#[inline(always)]
fn direct<F: Ip>(
    context: *mut bpf_sock_addr,
    addr: F::Addr,
    set: impl Fn(*mut bpf_sock_addr, (F::Addr, Port)),
) -> i32
where
    Kernel: Sockets<F>,
{
    let (number, cookie) = (load!(context, protocol), cookie(context.cast()));
    let ask = Ask {
        addr,
        port: port(context),
        protocol: Protocol(if number < 256 { number as u8 } else { 0 }),
        cookie,
    };
    let result = proxy_ebpf::socket::direct::<F, _>(
        &Kernel {
            context: context.cast(),
        },
        &ask,
    );
    if let Ok(Some(to)) = result {
        set(context, to);
    }
    verdict(context, ask.port, result.map(drop))
}

/// Turns a result into a verdict on a socket: the one place for it.
#[inline(always)]
fn verdict(context: *mut bpf_sock_addr, port: Port, result: Result<(), Reason>) -> i32 {
    let Err(reason) = result else { return PROCEED };
    count(reason.index());
    if level_enabled(Level::Debug) {
        log_refused(context, port.number().into(), reason as u32);
    }
    // SAFETY: a global of this program, which the loader has set.
    let errno = unsafe { ptr::read_volatile(&raw const REFUSED) };
    // If it is 0, the verifier skips the call, which the kernel does not have.
    if errno != 0 && reason.answer().is_some() {
        // SAFETY: no pointer.
        unsafe { bpf_set_retval(errno) };
    }
    FAIL
}

#[inline(never)]
fn log_refused(context: *mut bpf_sock_addr, port: u32, reason: u32) -> i32 {
    debug!(
        &SockAddrContext::new(context),
        target: "portway::packets",
        "a process of this node that asked for port {}: stopped, reason#{}", port, reason
    );
    0
}

/// Replaces a backend's address by the one that the process asked for.
#[inline(always)]
fn restore<F: Ip>(
    context: *mut bpf_sock_addr,
    addr: F::Addr,
    set: impl Fn(*mut bpf_sock_addr, (F::Addr, Port)),
) -> i32
where
    Kernel: Sockets<F>,
{
    let tables = Kernel {
        context: context.cast(),
    };
    if let Some(asked) =
        proxy_ebpf::socket::asked::<F, _>(&tables, cookie(context.cast()), addr, port(context))
    {
        set(context, asked);
    }
    PROCEED
}

#[inline(never)]
fn direct4(context: *mut bpf_sock_addr) -> i32 {
    direct::<V4>(context, addr4(context), set4)
}

#[inline(never)]
fn direct_mapped(context: *mut bpf_sock_addr) -> i32 {
    direct::<V4>(
        context,
        Addr4::from_word(load!(context, user_ip6[3])),
        set_mapped,
    )
}

#[inline(never)]
fn direct6(context: *mut bpf_sock_addr) -> i32 {
    direct::<V6>(context, addr6(context), set6)
}

#[inline(never)]
fn restore4(context: *mut bpf_sock_addr) -> i32 {
    restore::<V4>(context, addr4(context), set4)
}

#[inline(never)]
fn restore_mapped(context: *mut bpf_sock_addr) -> i32 {
    restore::<V4>(
        context,
        Addr4::from_word(load!(context, user_ip6[3])),
        set_mapped,
    )
}

#[inline(never)]
fn restore6(context: *mut bpf_sock_addr) -> i32 {
    restore::<V6>(context, addr6(context), set6)
}

/// Returns true if an IPv6 socket has an IPv4 address.
#[inline(always)]
fn is_mapped(context: *mut bpf_sock_addr) -> bool {
    let (a, b) = (load!(context, user_ip6[0]), load!(context, user_ip6[1]));
    a | b == 0 && load!(context, user_ip6[2]) == MAPPED
}

/// Makes a program of the name of its hook. IPv6 sockets with an IPv4 address use `mapped`.
macro_rules! hook {
    ($name:ident: v4: $v4:ident) => {
        #[cgroup_sock_addr($name)]
        pub fn $name(context: SockAddrContext) -> i32 {
            if is_ours(&context) {
                $v4(context.sock_addr)
            } else {
                PROCEED
            }
        }
    };
    ($name:ident: v6: $v6:ident, mapped: $mapped:ident) => {
        #[cgroup_sock_addr($name)]
        pub fn $name(context: SockAddrContext) -> i32 {
            match context.sock_addr {
                _ if !is_ours(&context) => PROCEED,
                mapped if is_mapped(mapped) => $mapped(mapped),
                other => $v6(other),
            }
        }
    };
}

hook!(connect4: v4: direct4);
hook!(connect6: v6: direct6, mapped: direct_mapped);
hook!(sendmsg4: v4: direct4);
hook!(sendmsg6: v6: direct6, mapped: direct_mapped);
hook!(recvmsg4: v4: restore4);
hook!(recvmsg6: v6: restore6, mapped: restore_mapped);
hook!(getpeername4: v4: restore4);
hook!(getpeername6: v6: restore6, mapped: restore_mapped);
