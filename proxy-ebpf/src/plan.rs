//! The plan of a new flow: the hooks and ways of both directions, by the place of the backend and
//! the origin of the client.

use proxy_common::config::Config;
use proxy_common::flow::{FlowKey, Hook, Way};
use proxy_common::net::{Address, IfIndex};
use proxy_common::node::{AddressFlags, RangeKind};
use proxy_common::reason::Reason;
use proxy_common::service::{Backend, BackendFlags};

use crate::parse::Ip;
use crate::{Tables, dsr, process};

/// The plan of a new flow, for both directions.
#[derive(Clone, Copy)]
pub struct Plan<A> {
    /// The leg of the client's packets.
    pub(crate) forward: Leg,
    /// The leg of the backend's packets.
    pub(crate) reply: Leg,
    /// The address that replaces the client's; zero if the client's is kept. Not an `Option`:
    /// kernels before 6.3 refuse to copy its undefined bytes.
    pub(crate) masquerade: A,
    /// True if a second flow masquerades, on the way out of the stack.
    pub(crate) later: bool,
}

/// The plan of one direction.
#[derive(Clone, Copy)]
pub(crate) struct Leg {
    pub(crate) hooks: u8,
    pub(crate) way: Way,
    pub(crate) device: IfIndex,
}

impl<A: Copy> Plan<A> {
    /// Returns true if a second flow masquerades, with [`Self::masquerade`].
    #[inline(always)]
    pub fn has_inner(&self) -> bool {
        self.later
    }
    /// Returns the address that replaces the client's; zero if the client's is kept.
    #[inline(always)]
    pub fn masquerade(&self) -> A {
        self.masquerade
    }
    /// Returns the way of the client's packets.
    #[inline(always)]
    pub fn way(&self) -> Way {
        self.forward.way
    }
    /// Returns the device of that way; none if it is the stack.
    #[inline(always)]
    pub fn device(&self) -> IfIndex {
        self.forward.device
    }
}

impl Leg {
    #[inline(always)]
    const fn new(hooks: u8, way: Way, device: IfIndex) -> Self {
        Self { hooks, way, device }
    }
}

/// Plans a flow by the place of its backend: a pod of this node, this host, or behind a route (V9,
/// V10, V12).
#[inline(always)]
pub fn plan<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    key: &FlowKey<F::Addr>,
    backend: &Backend<F::Addr>,
    hook: Hook,
    dsr: bool,
    config: &Config,
) -> Result<Plan<F::Addr>, Reason> {
    let out = match hook {
        Hook::FromDevice => Hook::ToDevice,
        Hook::FromPod | Hook::ToPod | Hook::ToDevice => Hook::ToPod,
    };
    let firewall = config.has(Config::THROUGH_STACK);
    if let Some(pod) = tables.pod(&backend.addr) {
        if pod.device == IfIndex::NONE {
            return Err(Reason::PodDeviceUnknown);
        }
        // The stack would drop a pod's packet to itself as one with a forged source.
        if firewall && backend.addr != key.src {
            return Ok(through_stack(hook, out));
        }
        let back = match hook {
            Hook::FromDevice => Way::Neighbour,
            Hook::FromPod | Hook::ToPod | Hook::ToDevice => Way::Pod,
        };
        // V10: a pod that reaches itself gets the address that it asked for as the client's.
        let masquerade = if backend.addr == key.src {
            key.dst
        } else {
            F::Addr::ZERO
        };
        let reply = Leg::new(Hook::FromPod as u8, back, device);
        return Ok(Plan {
            forward: Leg::new(hook as u8, Way::Pod, pod.device),
            reply,
            masquerade,
            later: false,
        });
    }
    if tables.address(&backend.addr).has(AddressFlags::HOST) {
        return Ok(through_stack(hook, out));
    }
    let pod_network = backend.flags & BackendFlags::POD != 0;
    if hook == Hook::FromPod && (firewall || !pod_network) {
        return Ok(through_stack(hook, Hook::ToPod));
    }
    let route = tables
        .route(device, &key.src, &backend.addr)
        .ok_or(Reason::NoRoute)?;
    let forward = Leg::new(hook as u8, Way::Neighbour, route.device);
    if hook == Hook::FromPod {
        let reply = Leg::new(Hook::FromDevice as u8 | Hook::ToPod as u8, Way::Pod, device);
        return Ok(Plan {
            forward,
            reply,
            masquerade: F::Addr::ZERO,
            later: false,
        });
    }
    let leaves_by = tables.device(route.device).unwrap_or_default();
    if dsr
        && pod_network
        && !firewall
        && dsr::can_encapsulate::<F>(&leaves_by)
        && is_outside(tables, &key.src)
    {
        let forward = Leg::new(hook as u8, Way::Dsr, route.device);
        // Replies do not pass this node.
        return Ok(Plan {
            forward,
            reply: Leg::new(0, Way::Stack, IfIndex::NONE),
            masquerade: F::Addr::ZERO,
            later: false,
        });
    }
    let masquerade = F::masquerade(&leaves_by);
    if masquerade == F::Addr::ZERO {
        return Err(Reason::NoMasqueradeAddress);
    }
    if firewall {
        // The stack would drop a packet with an address of this host as source: masquerade on the
        // way out.
        return Ok(Plan {
            masquerade,
            later: true,
            ..through_stack(hook, out)
        });
    }
    Ok(Plan {
        forward,
        reply: Leg::new(Hook::FromDevice as u8, Way::Neighbour, device),
        masquerade,
        later: false,
    })
}

/// Returns true if a client is neither a pod nor a node of the cluster. Pods and nodes expect
/// replies by the way of their requests.
#[inline(always)]
fn is_outside<F: Ip, T: Tables<F>>(tables: &T, client: &F::Addr) -> bool {
    tables.range(client) != RangeKind::PODS
        && tables.address(client).0 & (AddressFlags::NODE | AddressFlags::HOST) == 0
}

/// Plans a flow for packets that another node encapsulates: replies go to the client directly, from
/// the frontend's address.
#[inline(always)]
pub fn for_encapsulated<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    key: &FlowKey<F::Addr>,
    backend: &Backend<F::Addr>,
    config: &Config,
) -> Result<Plan<F::Addr>, Reason> {
    // P18: no node encapsulates packets of such clients.
    if !is_outside(tables, &key.src) || tables.pod(&key.src).is_some() {
        return Err(Reason::ForgedSource);
    }
    let Some(pod) = tables.pod(&backend.addr) else {
        return Err(Reason::NotServedHere);
    };
    if pod.device == IfIndex::NONE {
        return Err(Reason::PodDeviceUnknown);
    }
    if config.has(Config::THROUGH_STACK) {
        return Ok(through_stack(Hook::FromDevice, Hook::ToDevice));
    }
    let route = tables
        .route(device, &key.dst, &key.src)
        .ok_or(Reason::NoRoute)?;
    let reply = Leg::new(Hook::FromPod as u8, Way::Neighbour, route.device);
    Ok(Plan {
        forward: Leg::new(Hook::FromDevice as u8, Way::Pod, pod.device),
        reply,
        masquerade: F::Addr::ZERO,
        later: false,
    })
}

/// Plans a flow of a process of this host that is served by its packets: they come by the gate,
/// and replies leave by the gate.
#[inline(always)]
pub fn for_process<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    key: &FlowKey<F::Addr>,
    backend: &Backend<F::Addr>,
) -> Result<Plan<F::Addr>, Reason> {
    let hook = Hook::FromDevice as u8;
    let home = process::reply_device(tables, device, &key.dst);
    if let Some(pod) = tables.pod(&backend.addr) {
        if pod.device == IfIndex::NONE {
            return Err(Reason::PodDeviceUnknown);
        }
        // V21: loopback addresses do not leave the host.
        let masquerade = if key.src.is_loopback() {
            own_address(tables, device)?
        } else {
            F::Addr::ZERO
        };
        let reply = Leg::new(Hook::FromPod as u8, Way::Gate, home);
        return Ok(Plan {
            forward: Leg::new(hook, Way::Pod, pod.device),
            reply,
            masquerade,
            later: false,
        });
    }
    let reply = Leg::new(hook, Way::Gate, home);
    // The backend is another process of this host: it gets the frontend's address as the client's,
    // so that its replies come by the gate.
    if tables.address(&backend.addr).has(AddressFlags::HOST) {
        let masquerade = if key.dst.is_loopback() {
            own_address(tables, device)?
        } else {
            key.dst
        };
        return Ok(Plan {
            forward: reply,
            reply,
            masquerade,
            later: false,
        });
    }
    // The kernel looks up no route from a loopback address.
    let src = if key.src.is_loopback() {
        own_address(tables, device)?
    } else {
        key.src
    };
    let route = tables
        .route(device, &src, &backend.addr)
        .ok_or(Reason::NoRoute)?;
    let masquerade = own_address(tables, route.device)?;
    Ok(Plan {
        forward: Leg::new(hook, Way::Neighbour, route.device),
        reply,
        masquerade,
        later: false,
    })
}

/// Returns the address of this host for packets that leave by a device (V12).
#[inline(always)]
fn own_address<F: Ip, T: Tables<F>>(tables: &T, device: IfIndex) -> Result<F::Addr, Reason> {
    match tables
        .device(device)
        .map_or(F::Addr::ZERO, |out| F::masquerade(&out))
    {
        none if none == F::Addr::ZERO => Err(Reason::NoMasqueradeAddress),
        address => Ok(address),
    }
}

/// Plans a flow through the stack, which forwards or delivers the packets.
#[inline(always)]
fn through_stack<A: Address>(hook: Hook, back: Hook) -> Plan<A> {
    let leg = |hook: Hook| Leg::new(hook as u8, Way::Stack, IfIndex::NONE);
    Plan {
        forward: leg(hook),
        reply: leg(back),
        masquerade: A::ZERO,
        later: false,
    }
}
