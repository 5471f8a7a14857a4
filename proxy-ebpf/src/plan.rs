//! How a new flow will go, both directions at once ("one way for both directions"): by where its backend is, and who asks for it.

use proxy_common::config::Config;
use proxy_common::flow::{FlowKey, Hook, Way};
use proxy_common::net::{Address, IfIndex};
use proxy_common::node::{AddressFlags, RangeKind};
use proxy_common::reason::Reason;
use proxy_common::service::{Backend, BackendFlags};

use crate::parse::Ip;
use crate::{Tables, dsr, process};

/// How a new flow will go, both directions at once ("one way for both directions").
#[derive(Clone, Copy)]
pub struct Plan<A> {
    /// How the client's packets will go.
    pub(crate) forward: Leg,
    /// How the backend's will.
    pub(crate) reply: Leg,
    /// The address that replaces the client's; zero if that is kept. No `Option`: kernels before 6.3 refuse to copy what one leaves undefined.
    pub(crate) masquerade: A,
    /// Replaced not here, but by a flow of its own on the way out of the stack.
    pub(crate) later: bool,
}

#[derive(Clone, Copy)]
pub(crate) struct Leg {
    pub(crate) hooks: u8,
    pub(crate) way: Way,
    pub(crate) device: IfIndex,
}

impl<A: Copy> Plan<A> {
    /// Whether a second flow masquerades, with [`Self::masquerade`].
    #[inline(always)]
    pub fn has_inner(&self) -> bool {
        self.later
    }
    /// The address that replaces the client's; zero if that is kept.
    #[inline(always)]
    pub fn masquerade(&self) -> A {
        self.masquerade
    }
    /// How the client's packets will go.
    #[inline(always)]
    pub fn way(&self) -> Way {
        self.forward.way
    }
    /// The device that they will go to, if not up the stack.
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

/// Chooses the way by where the backend is: a pod of this node, this host, or beyond a route (V9, V10, V12).
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
        // The stack would take a pod's packet to itself for one with a forged source.
        if firewall && backend.addr != key.src {
            return Ok(through_stack(hook, out));
        }
        let back = match hook {
            Hook::FromDevice => Way::Neighbour,
            Hook::FromPod | Hook::ToPod | Hook::ToDevice => Way::Pod,
        };
        // V10: a pod that reaches itself sees the address that it asked for as the client.
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
        // Nothing of it comes back here.
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
        // An address of this host in the source would not get in; it is put there where the packet gets out.
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

/// Whether a client is neither a pod nor a node of the cluster: these expect their answers from whom they asked, and the way that they came.
#[inline(always)]
fn is_outside<F: Ip, T: Tables<F>>(tables: &T, client: &F::Addr) -> bool {
    tables.range(client) != RangeKind::PODS
        && tables.address(client).0 & (AddressFlags::NODE | AddressFlags::HOST) == 0
}

/// The same for what another node has sent here encapsulated: the reply goes straight to the client, from the address that this asked.
#[inline(always)]
pub fn for_encapsulated<F: Ip, T: Tables<F>>(
    tables: &T,
    device: IfIndex,
    key: &FlowKey<F::Addr>,
    backend: &Backend<F::Addr>,
    config: &Config,
) -> Result<Plan<F::Addr>, Reason> {
    // P18: no node sends such here.
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

/// The same for a process of this host that no hook of sockets serves: its packets come by the gate, and what answers goes out of it.
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
        // V21: nobody but this host has such addresses.
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
    // Another process of this host sees the address that was asked for as its client, or its answers would not come by the gate.
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
    // The kernel looks up no route from loopback.
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

/// The address of this host that what leaves by a device gets (V12).
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
