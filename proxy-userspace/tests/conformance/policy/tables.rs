//! The tables of a case, also in the kernel, and the programs over them.

use std::net::IpAddr;

use anyhow::{Result, bail};
use portway::place::policies::PolicyWrite;
use portway::place::{Entry, Key, Write};
use proxy_common::net::{AddressFlags, IfIndex, LocalPod};
use proxy_common::reason::Reason;
use proxy_common::service::Config;
use proxy_ebpf::Action;

use super::cases::Step;
use super::oracle::{End, Port};
use super::world::{World, own_node, protocol};
use crate::kernel::Kernel;
use crate::programs::Hook;
use crate::segment::{SYN, Segment};
use crate::world::FIRST_POD;

const DEVICE: IfIndex = IfIndex(FIRST_POD);
const SPORT: u16 = 40000;

/// The tables of a case's states, in memory and in the kernel.
pub struct Tables {
    /// In memory.
    pub world: World,
}

impl Tables {
    /// Without objects.
    pub fn new(kernel: &mut Kernel) -> Result<Self> {
        let config = Config {
            hz: 250,
            opening_timeout: 30,
            flags: Config::POLICY,
            ..Config::default()
        };
        kernel.write(Write::Put(Entry::Config(config)))?;
        Ok(Self {
            world: World::new(DEVICE),
        })
    }

    /// Applies a step's objects as an agent would, and writes the tables.
    pub fn bring_to(&mut self, step: &Step, kernel: &mut Kernel) -> Result<()> {
        let writes = self.world.bring_to(step)?;
        self.write(&writes, kernel)
    }

    /// Takes everything away again.
    pub fn empty(&mut self, kernel: &mut Kernel) -> Result<()> {
        let writes = self.world.empty()?;
        self.write(&writes, kernel)?;
        kernel.forget_policies()
    }

    fn write(&self, writes: &[PolicyWrite], kernel: &mut Kernel) -> Result<()> {
        writes
            .iter()
            .try_for_each(|write| kernel.write_policy(write))?;
        let pods = self.world.pod_ids().into_iter().map(|(ip, pod_id)| {
            (
                ip,
                LocalPod {
                    device: DEVICE,
                    pod_id,
                },
            )
        });
        kernel.put_pods(pods.collect())?;
        kernel.forget_flows()
    }

    /// Returns the verdicts by the kernel's tables, as `portway explain` reads them.
    pub fn verdict_of_explain(
        &self,
        from: End,
        to: End,
        port: Port,
        kernel: &Kernel,
    ) -> Result<(bool, bool)> {
        let verdicts =
            kernel
                .verdicts()
                .verdicts(from.ip, to.ip, protocol(port.protocol), port.number)?;
        Ok((
            own_node(from, to) || verdicts.ingress.unwrap_or(true),
            verdicts.egress.unwrap_or(true),
        ))
    }

    /// Returns the verdicts by the loaded programs, on the first packet of a connection at both
    /// devices.
    pub fn verdict_of_programs(
        &self,
        from: End,
        to: End,
        port: Port,
        kernel: &mut Kernel,
    ) -> Result<(bool, bool)> {
        let bytes = packet(from.ip, to.ip, port);
        let egress = self.world.rows(from.ip).is_none() || passes(kernel, Hook::FromPod, &bytes)?;
        if self.world.rows(to.ip).is_none() {
            return Ok((true, egress));
        }
        let own = own_node(from, to);
        if own {
            kernel.write(Write::Put(Entry::Address(
                from.ip,
                AddressFlags(AddressFlags::HOST),
            )))?;
        }
        // A packet that passed the source's device has a flow, which would decide at the
        // destination's.
        kernel.forget_flows_of(from.ip, to.ip, protocol(port.protocol), SPORT, port.number)?;
        let ingress = passes(kernel, Hook::ToPod, &bytes)?;
        if own {
            kernel.write(Write::Delete(Key::Address(from.ip)))?;
            kernel.forget_flows_of(from.ip, to.ip, protocol(port.protocol), SPORT, port.number)?;
        }
        Ok((ingress, egress))
    }
}

fn passes(kernel: &mut Kernel, hook: Hook, bytes: &[u8]) -> Result<bool> {
    match kernel.run(hook, DEVICE, bytes)?.0 {
        Ok(Action::Untouched) => Ok(true),
        Err(Reason::DeniedIngress) if hook == Hook::ToPod => Ok(false),
        Err(Reason::DeniedEgress) if hook == Hook::FromPod => Ok(false),
        other => bail!("{hook:?} says {other:?}"),
    }
}

/// The first packet of a connection.
fn packet(from: IpAddr, to: IpAddr, port: Port) -> Vec<u8> {
    let segment = Segment::new(
        protocol(port.protocol),
        (from, SPORT).into(),
        (to, port.number).into(),
    );
    segment.flags(SYN).payload(&[1; 24]).bytes()
}
