//! The servers that load balancers ask which nodes have backends (V22): one listener for each
//! address and port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::answer::{self, Answer};
use super::vitals::{TOO_LONG, Vitals};
use crate::compile::HealthCheck;
use crate::events::{Events, Warning, Warnings};
use crate::model::{Kind, ObjectName, ObjectRef};

/// Pause after a failure to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The health checks to serve, by Service.
pub type Checks = BTreeMap<ObjectName, HealthCheck>;

/// Serves the current `checks`. An address that is in use leads to a warning about the Service, and
/// is tried again.
///
/// # Errors
/// If the channel of checks is closed.
pub async fn serve_services(
    mut checks: watch::Receiver<Checks>,
    vitals: watch::Receiver<Vitals>,
    events: Events,
) -> Result<()> {
    let asked = Asked {
        checks: checks.clone(),
        vitals,
        at: SocketAddr::from(([0, 0, 0, 0], 0)),
    };
    let mut open = BTreeMap::new();
    let mut warnings = Warnings::new(events);
    loop {
        let wanted = listeners(&checks.borrow_and_update());
        close_others(&mut open, &wanted).await;
        let refused = listen(&mut open, &wanted, &asked).await;
        let complete = refused.is_empty();
        warnings.are(refused);
        tokio::select! {
            changed = checks.changed() => if changed.is_err() {
                bail!("the channel of health checks is closed");
            },
            () = sleep(LISTEN_AGAIN), if !complete => {}
        }
    }
}

/// Returns the addresses to listen on, each with its Service.
fn listeners(checks: &Checks) -> BTreeMap<SocketAddr, ObjectName> {
    let of = |(name, check): (&ObjectName, &HealthCheck)| {
        let (name, port) = (name.clone(), check.port);
        check
            .addresses
            .clone()
            .into_iter()
            .map(move |ip| (SocketAddr::new(ip, port), name.clone()))
    };
    checks.iter().flat_map(of).collect()
}

/// A listener. Dropping it ends its connections too, each after its current answer.
struct Server {
    _end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Closes the listeners that are not wanted, and waits until their addresses are free.
async fn close_others(
    open: &mut BTreeMap<SocketAddr, Server>,
    wanted: &BTreeMap<SocketAddr, ObjectName>,
) {
    let gone: Vec<_> = open
        .extract_if(.., |at, server| {
            !wanted.contains_key(at) || server.task.is_finished()
        })
        .collect();
    for (at, Server { _end, task }) in gone {
        drop(_end);
        task.abort();
        // The task was aborted: its result has no meaning.
        _ = task.await;
        debug!(%at, "health check server closed");
    }
}

/// Opens the missing listeners, and returns warnings for those that cannot be opened.
async fn listen(
    open: &mut BTreeMap<SocketAddr, Server>,
    wanted: &BTreeMap<SocketAddr, ObjectName>,
    asked: &Asked,
) -> BTreeSet<Warning> {
    let mut refused = BTreeSet::new();
    for (at, name) in wanted {
        if open.contains_key(at) {
            continue;
        }
        match TcpListener::bind(at).await {
            Ok(listener) => {
                _ = open.insert(
                    *at,
                    serve(
                        listener,
                        Asked {
                            at: *at,
                            ..asked.clone()
                        },
                    ),
                )
            }
            Err(error) => _ = refused.insert(not_served(name, *at, &error)),
        }
    }
    refused
}

/// Returns the warning for an address that cannot be listened on, as kube-proxy words it.
fn not_served(name: &ObjectName, at: SocketAddr, error: &std::io::Error) -> Warning {
    Warning {
        object: ObjectRef {
            kind: Kind::Service,
            name: name.clone(),
        },
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
        note: format!(
            "cannot listen on {at} for the health check of Service {name}: {error}; trying again"
        ),
    }
}

fn serve(listener: TcpListener, asked: Asked) -> Server {
    let (end, ended) = oneshot::channel::<()>();
    let at = asked.at;
    let router = Router::new().fallback(reply).with_state(asked);
    let task = tokio::spawn(async move {
        let closed = async { _ = ended.await };
        if let Err(error) = axum::serve(listener, router)
            .with_graceful_shutdown(closed)
            .await
        {
            warn!(%at, error = %error, "health check server failed");
        }
    });
    debug!(%at, "health check server open");
    Server { _end: end, task }
}

/// The inputs of an answer. The Service is looked up for each request, so that a changed count or
/// owner is seen at once.
#[derive(Clone)]
struct Asked {
    checks: watch::Receiver<Checks>,
    vitals: watch::Receiver<Vitals>,
    at: SocketAddr,
}

async fn reply(State(asked): State<Asked>) -> Response {
    let vitals = *asked.vitals.borrow();
    match answer_at(&asked.checks.borrow(), asked.at, &vitals, Instant::now()) {
        Some(answer) => answer.into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// V22: the answer to whoever asks at this address and port; `None` if no Service is asked about
/// there.
pub fn answer_at(checks: &Checks, at: SocketAddr, vitals: &Vitals, now: Instant) -> Option<Answer> {
    let (name, check) = checks
        .iter()
        .find(|(_, check): &(&ObjectName, &HealthCheck)| {
            check.port == at.port() && check.addresses.contains(&at.ip())
        })?;
    Some(answer::service(
        name,
        check.weight(at.ip()),
        vitals,
        now,
        TOO_LONG,
    ))
}

#[cfg(test)]
mod tests;
