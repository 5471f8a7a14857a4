//! `portway doctor`: the usual mistakes in Services and on this host, each with what to do about
//! it.

mod check;
mod labels;
mod node_ports;
mod other_dataplanes;
mod policies;
mod services;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::{Output, words};
use crate::compile::compile_reporting;
use crate::listeners::listeners;
use crate::model::{Forwarding, Kind, ObjectRef, Snapshot, State, Word as _};
use crate::source::{self, SourceArgs};

pub use crate::listeners::Listener;
pub use check::Check;

/// `portway doctor`.
#[derive(clap::Args, Clone, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "shown as part of this command")]
    pub source: SourceArgs,
    /// Directory on bpffs in which to look for the pinned objects of other data planes.
    #[arg(
        long,
        env = "PORTWAY_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf"
    )]
    pub bpffs: PathBuf,
    /// The agents' --forwarding, which counts for Services without the annotation.
    #[arg(
        long,
        env = "PORTWAY_FORWARDING",
        value_parser = words::<Forwarding>(),
        default_value = Forwarding::Masquerade.word()
    )]
    pub forwarding: Forwarding,
    /// Format of the output.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Kind, namespace and name of the object.
    pub object: String,
    /// Path of the field, as `kubectl explain` writes it.
    pub field: String,
    /// The check that found it.
    pub check: Check,
    /// The mistake, in words.
    pub problem: String,
    /// The remedy.
    pub advice: String,
}

impl Finding {
    fn new(
        check: Check,
        object: &ObjectRef,
        field: impl Into<String>,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            object: object.to_string(),
            field: field.into(),
            check,
            problem: problem.into(),
            advice: advice.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            field,
            problem,
            advice,
            check,
        } = self;
        write!(
            f,
            "{object}: {field}: {problem} [{}]\n  {advice}.",
            check.name()
        )
    }
}

/// Reads the objects and the host, and prints the findings. The exit status is 1 if there are any.
///
/// # Errors
/// If the objects cannot be listed, or the host's sockets cannot be read.
pub async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let DoctorArgs {
        source,
        bpffs,
        forwarding,
        output,
    } = args;
    let mut snapshot = Snapshot::default();
    snapshot.settings.node_name = source.node_name()?.into();
    snapshot.settings.service_options.forwarding = forwarding;
    snapshot.state = source::list(source.settings()?).await?;
    let listeners = listeners().context("read the host's sockets")?;
    let mut findings = examine(&snapshot, &listeners);
    findings.extend(other_dataplanes::findings(
        &crate::other_dataplanes::find(&bpffs),
        &snapshot.settings.node_name,
    ));
    print(&findings, &snapshot.state, output).context("print")?;
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns the findings in the order of objects; pure.
pub fn examine(snapshot: &Snapshot, listeners: &[Listener]) -> Vec<Finding> {
    let mut findings = unusable(&snapshot.state);
    let (_, conflicts) = compile_reporting(snapshot);
    findings.extend(node_ports::claimed_twice(&conflicts));
    findings.extend(node_ports::taken_by_host(&snapshot.state, listeners));
    findings.extend(services::examine(&snapshot.state));
    findings.extend(policies::examine(snapshot));
    findings.sort();
    findings
}

/// Returns findings for invalid objects and fields.
fn unusable(state: &State) -> Vec<Finding> {
    let advice = |kind| match kind {
        Kind::Manifest => "correct the file; until then its last good content counts",
        Kind::Service
        | Kind::EndpointSlice
        | Kind::Pod
        | Kind::Node
        | Kind::Namespace
        | Kind::NetworkPolicy
        | Kind::ServiceCIDR
        | Kind::Deployment
        | Kind::ReplicaSet
        | Kind::StatefulSet
        | Kind::DaemonSet => {
            "correct the field; until then this object is left out, and nothing else"
        }
    };
    let whole = state.invalid.values();
    let whole = whole.map(|i| {
        Finding::new(
            Check::UnusableObject,
            &i.object,
            &i.field,
            &i.why,
            advice(i.object.kind),
        )
    });
    let parts = state.flaws.values().flatten();
    let parts = parts.map(|i| {
        Finding::new(
            Check::UnusableField,
            &i.object,
            &i.field,
            &i.why,
            "correct the field; the rest is in force",
        )
    });
    whole.chain(parts).collect()
}

fn print(findings: &[Finding], state: &State, output: Output) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(findings)?)?,
        Output::Text => {
            for finding in findings {
                writeln!(out, "{finding}\n")?;
            }
            let looked_at = format!(
                "{} Services, {} NetworkPolicies, {} pods, {} nodes",
                state.services.len(),
                state.policies.len(),
                state.pods.len(),
                state.nodes.len()
            );
            match findings.len() {
                0 => writeln!(out, "No mistake found in {looked_at}.")?,
                1 => writeln!(out, "1 finding in {looked_at}.")?,
                n => writeln!(out, "{n} findings in {looked_at}.")?,
            }
        }
    }
    Ok(())
}
