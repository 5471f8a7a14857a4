//! `portway status`: the agent's lock, attached programs, and the sizes of the maps.

use std::fmt::Write as _;

use anyhow::Result;
use proxy_common::net::IfIndex;
use proxy_common::reason::{Counter, Reason};
use serde_json::{Value, json};

use super::print::{PinArgs, device_name, lines, print, table};
use crate::dataplane::{
    Attachment, FlowTable, Maps, StateDir, Verified, names_in, program_id, programs_in,
    socket_hooks, sockets_of,
};
use crate::other_dataplanes::{self, OtherSoftware};

struct Status {
    dir: String,
    agent: Agent,
    hooks: Vec<Attached>,
    sockets: Sockets,
    programs: Vec<Verified>,
    frontends: usize,
    service_ports: usize,
    pods: usize,
    pods_without_device: usize,
    flows: Flows,
    counters: Vec<(&'static str, &'static str, u64)>,
    other_dataplanes: Vec<OtherSoftware>,
}

#[derive(PartialEq, Eq)]
enum Agent {
    Running,
    Dead,
}

struct Attached {
    hook: Attachment,
    device: String,
    by: &'static str,
    program: Option<u32>,
}

/// The socket hooks, by name and with the program's id, and the cgroup that they are attached to.
struct Sockets {
    hooks: Vec<(String, Option<u32>)>,
    cgroup: Option<String>,
}

#[derive(Default)]
struct Flows {
    established: usize,
    half_open: usize,
}

/// `portway status`.
pub fn run(args: &PinArgs) -> Result<String> {
    print(args, read, text)
}

fn read(dir: &StateDir) -> Result<Status> {
    let maps = Maps::from_pins(dir)?;
    let contents = maps.read()?.contents();
    let names: std::collections::BTreeSet<_> = contents
        .frontends
        .values()
        .map(|target| &target.service)
        .collect();
    // Each connection has an entry for either direction.
    let flows = Flows {
        established: (maps.v4.flows.all()?.len() + maps.v6.flows.all()?.len()) / 2,
        half_open: (maps.v4.opening.all()?.len() + maps.v6.opening.all()?.len()) / 2,
    };
    Ok(Status {
        dir: dir.root().display().to_string(),
        agent: if dir.is_locked()? {
            Agent::Running
        } else {
            Agent::Dead
        },
        hooks: names_in(&dir.hooks())?
            .iter()
            .map(|name| attached(dir, name.parse()?))
            .collect::<Result<_>>()?,
        sockets: Sockets {
            hooks: socket_hooks(dir)?,
            cgroup: sockets_of(dir),
        },
        programs: programs_in(dir)?,
        frontends: contents.frontends.len(),
        service_ports: names.len(),
        pods: contents.pods.len(),
        pods_without_device: contents
            .pods
            .values()
            .filter(|device| **device == IfIndex::NONE)
            .count(),
        flows,
        counters: counters(&maps)?,
        other_dataplanes: other_dataplanes::find(dir.root().parent().unwrap_or(dir.root())),
    })
}

fn attached(dir: &StateDir, hook: Attachment) -> Result<Attached> {
    let by = match (
        hook.point.is_xdp(),
        dir.hooks().join(hook.to_string()).is_dir(),
    ) {
        (true, _) => "xdp",
        (false, true) => "clsact",
        (false, false) => "tcx",
    };
    Ok(Attached {
        hook,
        device: device_name(hook.device),
        by,
        program: program_id(dir, hook),
    })
}

fn counters(maps: &Maps) -> Result<Vec<(&'static str, &'static str, u64)>> {
    let values = maps.counters()?;
    let value = |index: u32| values.get(index as usize).copied().unwrap_or_default();
    let drops = Reason::ALL
        .iter()
        .map(|reason| (reason.name(), reason.describe(), value(reason.index())));
    let events = Counter::ALL
        .iter()
        .map(|counter| (counter.name(), counter.describe(), value(counter.index())));
    Ok(events.chain(drops).collect())
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let agent = match status.agent {
        Agent::Running => "running",
        Agent::Dead => {
            "not running; attached programs keep forwarding, without changes from the cluster"
        }
    };
    // Writing to a String cannot fail.
    let _ok = writeln!(out, "Agent:     {agent}\nState:     {}", status.dir);
    let _ok = writeln!(
        out,
        "Services:  {} ports, {} frontends",
        status.service_ports, status.frontends
    );
    let _ok = writeln!(
        out,
        "Pods:      {} here, {} of them without a known device",
        status.pods, status.pods_without_device
    );
    let _ok = writeln!(
        out,
        "Flows:     {} established, {} half-open",
        status.flows.established, status.flows.half_open
    );
    let _ok = writeln!(out, "Sockets:   {}", status.sockets);
    for other in &status.other_dataplanes {
        let _ok = writeln!(out, "Beside it: {other}; {}", other.consequence());
    }
    out.push('\n');
    let mut hooks = table(&["DEVICE", "HOOK", "BY", "PROGRAM"]);
    for Attached {
        hook,
        device,
        by,
        program,
    } in &status.hooks
    {
        let program = program.map_or("-".into(), |id| id.to_string());
        hooks.add_row([device.as_str(), hook.point.name(), by, &program]);
    }
    for (name, program) in &status.sockets.hooks {
        hooks.add_row([
            "(sockets)",
            name,
            "cgroup",
            &program.map_or("-".into(), |id| id.to_string()),
        ]);
    }
    let mut programs = table(&["PROGRAM", "NAME", "VERIFIED INSTRUCTIONS"]);
    for Verified {
        name,
        id,
        instructions,
    } in &status.programs
    {
        programs.add_row([
            &id.to_string(),
            name,
            &instructions.map_or("-".into(), |count| count.to_string()),
        ]);
    }
    let mut counters = table(&["COUNT", "NAME", "MEANING"]);
    for (name, meaning, value) in status.counters.iter().filter(|(_, _, value)| *value > 0) {
        counters.add_row([&value.to_string(), *name, meaning]);
    }
    let counted = status.counters.iter().any(|(_, _, value)| *value > 0);
    out + &lines(&hooks)
        + "\n"
        + &lines(&programs)
        + &if counted {
            format!("\n{}", lines(&counters))
        } else {
            String::new()
        }
}

impl std::fmt::Display for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cgroup {
            Some(cgroup) => write!(f, "processes of this node in {cgroup} are sent to backends when they connect or send"),
            None => f.write_str("no hooks, and the agent's log says why: processes of this node reach Services by packets"),
        }
    }
}

impl From<&Status> for Value {
    fn from(status: &Status) -> Self {
        let hook = |a: &Attached| json!({ "device": a.device, "index": a.hook.device.0, "hook": a.hook.point.name(), "by": a.by, "program": a.program });
        let program = |p: &Verified| json!({ "id": p.id, "name": p.name, "verifiedInstructions": p.instructions });
        let counters: serde_json::Map<_, _> = status
            .counters
            .iter()
            .map(|(name, _, value)| ((*name).into(), (*value).into()))
            .collect();
        let other = |f: &OtherSoftware| json!({ "kind": f.kind.name(), "name": f.name, "evidence": f.evidence });
        json!({
            "stateDir": status.dir,
            "running": status.agent == Agent::Running,
            "servicePorts": status.service_ports,
            "frontends": status.frontends,
            "pods": status.pods,
            "podsWithoutDevice": status.pods_without_device,
            "flows": { "established": status.flows.established, "halfOpen": status.flows.half_open },
            "hooks": status.hooks.iter().map(hook).collect::<Vec<_>>(),
            "sockets": { "cgroup": status.sockets.cgroup, "programs": status.sockets.hooks.iter().map(|(name, id)| json!({ "name": name, "id": id })).collect::<Vec<_>>() },
            "programs": status.programs.iter().map(program).collect::<Vec<_>>(),
            "counters": counters,
            "foreign": status.other_dataplanes.iter().map(other).collect::<Vec<_>>(),
        })
    }
}
