//! The library over fake tables that hold what was placed.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use portway::contents::Contents;
use portway::place::{Actual, Side, place};
use proxy_common::net::{Addr4, Addr6, IfIndex, Port, Protocol, V4, V6};
use proxy_common::reason::Reason;
use proxy_common::service::{Backend, BackendKey, ServiceKey, SourceKey};
use proxy_ebpf::fake::{Bytes, Memory};
use proxy_ebpf::parse::Ip;
use proxy_ebpf::socket::Ask;
use proxy_ebpf::{Action, Route, from_device, from_pod};

use crate::programs::Hook;
use crate::world::{DEVICE, World};

/// A family that can recognise its own addresses.
pub trait Side4or6: Ip {
    /// The side of the maps that belongs to the family.
    const SIDE: Side;
    /// The address, if it is of this family.
    fn addr(ip: IpAddr) -> Option<Self::Addr>;
}

impl Side4or6 for V4 {
    const SIDE: Side = Side::V4;
    fn addr(ip: IpAddr) -> Option<Addr4> {
        if let IpAddr::V4(ip) = ip {
            Some(ip.into())
        } else {
            None
        }
    }
}

impl Side4or6 for V6 {
    const SIDE: Side = Side::V6;
    fn addr(ip: IpAddr) -> Option<Addr6> {
        if let IpAddr::V6(ip) = ip {
            Some(ip.into())
        } else {
            None
        }
    }
}

/// The tables placed by the steps of a case.
#[derive(Default)]
pub struct Fakes {
    actual: Actual,
}

impl Fakes {
    /// Brings the tables to these contents.
    pub fn place(&mut self, contents: &Contents) -> Result<()> {
        place(contents, &self.actual)
            .into_iter()
            .for_each(|write| self.actual.apply(write));
        ensure!(
            self.actual.contents() == *contents,
            "what was placed is not what was compiled"
        );
        Ok(())
    }

    /// The tables of one family, without flows.
    pub fn tables<F: Side4or6>(&self, contents: &Contents, world: &World) -> Memory<F> {
        let mut memory = Memory::<F> {
            config: self.actual.config(),
            ..Memory::default()
        };
        for (frontend, service) in self.actual.services() {
            let Some(addr) = F::addr(frontend.addr) else {
                continue;
            };
            memory.services.insert(
                ServiceKey::new(addr, Port::new(frontend.port), frontend.protocol),
                *service,
            );
            for (slot, backend) in self.actual.slots(F::SIDE, service.generation) {
                let Some(addr) = F::addr(backend.addr.ip()) else {
                    continue;
                };
                let (port, flags, generation) = (
                    Port::new(backend.addr.port()),
                    backend.flags,
                    backend.generation,
                );
                memory.backends.insert(
                    BackendKey {
                        generation: service.generation,
                        slot,
                    },
                    Backend {
                        addr,
                        port,
                        flags,
                        generation,
                    },
                );
                if !world.is_here(backend.addr.ip()) {
                    memory.routes.insert(
                        addr,
                        Route {
                            device: DEVICE,
                            neighbour: None,
                        },
                    );
                }
            }
        }
        memory.addresses.extend(
            contents
                .addresses
                .iter()
                .filter_map(|(ip, flags)| Some((F::addr(*ip)?, *flags))),
        );
        memory.pods.extend(
            self.actual
                .pods()
                .iter()
                .filter_map(|(ip, pod)| Some((F::addr(*ip)?, *pod))),
        );
        memory.devices.extend(contents.devices.clone());
        for (service, range) in &contents.sources {
            if let (Some(service), Some(addr)) = (self.actual.id_of(service), F::addr(range.addr()))
            {
                memory
                    .sources
                    .insert((SourceKey { service, addr }, u32::from(range.prefix_len())));
            }
        }
        let ranges = contents.ranges.iter();
        memory.ranges.extend(ranges.filter_map(|(range, kind)| {
            Some((
                (F::addr(range.addr())?, u32::from(range.prefix_len())),
                *kind,
            ))
        }));
        memory
    }
}

/// Runs a packet through the library.
pub fn run<F: Ip>(
    memory: &Memory<F>,
    hook: Hook,
    device: IfIndex,
    bytes: &[u8],
) -> (Result<Action, Reason>, Vec<u8>) {
    let mut packet = Bytes {
        bytes: bytes.to_vec(),
        from_host: true,
    };
    let said = match hook {
        Hook::FromPod => from_pod::<F, _, _>(&mut packet, memory, device),
        Hook::Xdp | Hook::FromDevice | Hook::ToPod | Hook::ToDevice => {
            from_device::<F, _, _>(&mut packet, memory, device)
        }
    };
    (said, packet.bytes)
}

/// Returns a process's request by a new socket of this number; `None` if the address is not of this
/// family.
pub fn ask<F: Side4or6>(
    protocol: Protocol,
    to: (IpAddr, u16),
    socket: u16,
) -> Option<Ask<F::Addr>> {
    Some(Ask {
        addr: F::addr(to.0)?,
        port: Port::new(to.1),
        protocol,
        cookie: [socket.into(), 0],
    })
}
