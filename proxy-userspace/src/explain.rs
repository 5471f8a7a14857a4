//! `portway explain`: which NetworkPolicies judge a connection, which rule allows it or why none
//! does. Judges by the objects, and on a node with an agent compares with its tables in the kernel.

mod backends;
mod display;
mod ends;
mod judge;
mod party;
mod ports;
mod tables;
mod typed;
mod words;

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::args::Output;
use crate::dataplane::{NodeVerdicts, StateDir};
use crate::model::State;
use crate::source::{self, SourceArgs};

pub(crate) use backends::dns;
pub use judge::{Judgement, Outcome, PolicyView, RuleView, Side, judge};
pub use party::{Party, Port, Who};
pub use tables::{Tables, compare};
pub use typed::{End, Target};
pub(crate) use words::{pods as peer_words, port as port_words, selector as selector_words};

/// `portway explain`.
#[derive(clap::Args, Clone, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub source: SourceArgs,
    /// Source: NAMESPACE/POD, or an address.
    #[arg(value_name = "FROM")]
    pub from: End,
    /// Destination: NAMESPACE/POD, an address or svc/NAMESPACE/SERVICE, then `:PORT` (number or
    /// name) and, if not TCP, `/udp` or `/sctp`.
    #[arg(value_name = "TO:PORT[/PROTOCOL]")]
    pub to: Target,
    /// State directory of an agent of this host, to compare with its tables.
    #[arg(long, env = "PORTWAY_STATE_DIR", value_name = "DIR")]
    #[arg(
        help = "State directory of an agent of this host, to compare with its tables [default: /sys/fs/bpf/portway if an agent has run; none with --manifests]"
    )]
    pub state_dir: Option<PathBuf>,
    /// Format of the output.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// A new connection between two addresses, judged as packets are: after DNAT, before masquerade
/// (P28, P29).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The source.
    pub from: String,
    /// The destination, with port and protocol.
    pub to: String,
    /// The source's address, if it has one.
    pub from_address: Option<IpAddr>,
    /// The destination's address, if it has one.
    pub to_address: Option<IpAddr>,
    /// The destination's port.
    #[serde(skip)]
    pub port: Port,
    /// True if both ends allow it (P1).
    pub allowed: bool,
    /// The judgement of the source's policies.
    pub egress: Judgement,
    /// The judgement of the destination's policies.
    pub ingress: Judgement,
    /// The verdicts of this node's tables, if they were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables: Option<Tables>,
}

/// The answer for every connection between the two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Notes: the owners of addresses, parts of policies that cannot be read.
    pub notes: Vec<String>,
    /// For each pair of addresses, the backends of a Service one by one.
    pub connections: Vec<Explanation>,
}

impl Answer {
    /// Returns true if every connection is allowed.
    pub fn allowed(&self) -> bool {
        self.connections.iter().all(|connection| connection.allowed)
    }
}

/// Prints the answer. The exit status is 1 if a connection is denied.
///
/// # Errors
/// If the objects cannot be listed, or have no such pod, Service or port.
pub async fn run(args: ExplainArgs) -> Result<ExitCode> {
    let ExplainArgs {
        source,
        from,
        to,
        state_dir,
        output,
    } = args;
    let tables = tables(state_dir.as_deref(), source.manifests.is_some())?;
    let state = source::list(source.settings()?).await?;
    let mut answer = explain(&state, &from, &to)?;
    if let Some(tables) = tables {
        answer
            .connections
            .iter_mut()
            .try_for_each(|connection| hold(connection, &tables))?;
    }
    let text = match output {
        Output::Text => answer.to_string(),
        Output::Json => format!(
            "{}\n",
            serde_json::to_string_pretty(&answer).context("write JSON")?
        ),
    };
    std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .context("print")?;
    Ok(if answer.allowed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns the tables in the given state directory, else in the usual one if it exists. Manifests
/// are not compared by default, since they may not be applied.
fn tables(given: Option<&Path>, manifests: bool) -> Result<Option<NodeVerdicts>> {
    let usual = Path::new(StateDir::USUAL);
    let dir = match given {
        Some(dir) => Some(dir),
        None => (!manifests && usual.join("maps").is_dir()).then_some(usual),
    };
    dir.map(|dir: &Path| {
        NodeVerdicts::from_pins(&StateDir::at(dir)).context("read the tables of this node's agent")
    })
    .transpose()
}

/// Adds the verdicts of a node's tables on a connection.
fn hold(connection: &mut Explanation, tables: &NodeVerdicts) -> Result<()> {
    if let (Some(from), Some(to)) = (connection.from_address, connection.to_address) {
        let verdicts =
            tables.verdicts(from, to, connection.port.protocol, connection.port.number)?;
        connection.tables = Some(compare(verdicts, connection));
    }
    Ok(())
}

/// Judges new connections by the objects; pure.
///
/// # Errors
/// If there is no such pod, Service or port.
pub fn explain(state: &State, from: &End, to: &Target) -> Result<Answer> {
    let mut notes = Vec::new();
    let pairs = ends::pairs(state, from, to, &mut notes)?;
    let connections: Vec<_> = pairs.iter().map(|pair| connection(state, pair)).collect();
    notes.extend(unreadable(state, &connections));
    Ok(Answer { notes, connections })
}

fn connection(state: &State, ends::Pair { from, to, port }: &ends::Pair<'_>) -> Explanation {
    let egress = judge(state, Side::Egress, from, to, port);
    let ingress = judge(state, Side::Ingress, from, to, port);
    Explanation {
        from: from.to_string(),
        to: format!("{to}:{port}"),
        from_address: from.addr,
        to_address: to.addr,
        port: *port,
        allowed: egress.allows() && ingress.allows(),
        egress,
        ingress,
        tables: None,
    }
}

/// Returns the flaws of the policies that judge.
fn unreadable(state: &State, connections: &[Explanation]) -> Vec<String> {
    let judging = |name: &str| {
        let judgements = connections.iter().flat_map(|c| [&c.egress, &c.ingress]);
        judgements
            .flat_map(|judgement| &judgement.policies)
            .any(|policy| policy.name == name)
    };
    let flaws = state
        .flaws
        .iter()
        .filter(|(object, _)| judging(&object.name.to_string()));
    flaws
        .flat_map(|(_, flaws)| flaws)
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests;
