//! Health: how many endpoints of a Service are here and ready (V22). The requests need a server.

use anyhow::Result;

use crate::cases::{HealthCase, HealthFile};
use crate::report::Tally;
use crate::rules::Row;
use crate::slices;

/// Checks a file.
pub fn check(file: &HealthFile, tally: &mut Tally) -> Result<()> {
    slices::check_events(&file.local_ready_endpoints, tally)?;
    tally.missing(Row::Health, "requests to healthCheckNodePorts", requests(&file.service_health));
    tally.missing(Row::Health, "requests to /healthz and /livez", requests(&file.proxy_health));
    Ok(())
}

fn requests(cases: &[HealthCase]) -> usize {
    let steps = cases.iter().flat_map(|case| &case.steps);
    steps.map(|step| step.requests.len() + usize::from(step.request.is_some())).sum()
}
