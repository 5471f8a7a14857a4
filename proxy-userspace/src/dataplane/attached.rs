//! The programs of any owner on a device, by their names.

use aya::programs::{SchedClassifier, TcAttachType};

/// Returns the programs that are attached by tcx in either direction; none before Linux 6.6.
pub fn tcx_programs(device: &str) -> Vec<String> {
    let of = |direction| {
        SchedClassifier::query_tcx(device, direction)
            .map(|(_, programs)| programs)
            .unwrap_or_default()
    };
    let programs = [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(of);
    programs
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .collect()
}
