//! Random clusters and NetworkPolicies: the tables' verdicts equal those of the text, read
//! literally.

#[path = "../conformance/policy/cases.rs"]
#[expect(dead_code, reason = "cases also have rows, which are read from files")]
mod cases;
#[path = "../conformance/policy/oracle.rs"]
mod oracle;
#[path = "../conformance/policy/world.rs"]
#[expect(dead_code, reason = "the kernel's way needs the rest")]
mod world;

mod random;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use proxy_common::net::IfIndex;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use oracle::{End, Port};
use world::World;

/// Histories, each with several states.
const HISTORIES: u64 = 150;
const STATES: usize = 4;

/// P1-P24: every connection between any two ends, in every state of a history that arrives object
/// by object.
#[test]
fn the_tables_say_what_the_text_says() {
    let base = std::env::var("PORTWAY_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let base = base.unwrap_or_else(|| {
        std::time::UNIX_EPOCH
            .elapsed()
            .map_or(1, |since| since.as_nanos() as u64)
    });
    println!("PORTWAY_TEST_SEED={base}");
    let (mut rows, mut denied) = (0_usize, 0_usize);
    for history in 0..HISTORIES {
        let mut dice = StdRng::seed_from_u64(base.wrapping_add(history));
        let mut world = World::new(IfIndex(7));
        let mut step = random::cluster(&mut dice);
        for state in 0..STATES {
            random::change(&mut dice, &mut step);
            world.bring_to(&step).expect("the objects can be read");
            // Once a history, the tables made anew: their numbers differ from those changed step by
            // step.
            let fresh = (state == STATES - 1)
                .then(|| world.made_anew(&step).expect("it comes to the same"));
            let policies: Vec<NetworkPolicy> = step.policies.iter().flatten().map(read).collect();
            for (from, to, protocol, number) in random::connections(&step) {
                let port = Port { protocol, number };
                let (text, tables) = (
                    oracle::verdict(&step, &policies, from, to, port),
                    world.verdict(from, to, port),
                );
                let place = || {
                    format!(
                        "seed {base}, history {history}, state {state}: {} to {} {protocol}/{number}",
                        name(from),
                        name(to)
                    )
                };
                if let Some(fresh) = &fresh {
                    assert_eq!(
                        fresh.verdict(from, to, port),
                        text,
                        "{} from nothing (ingress, egress)",
                        place()
                    );
                }
                let objects = || serde_json::to_string_pretty(&step.policies).unwrap_or_default();
                assert_eq!(tables, text, "{} (ingress, egress)\n{}", place(), objects());
                rows += 1;
                denied += usize::from(!text.0 || !text.1);
            }
        }
    }
    println!("{rows} connections, {denied} denied");
    assert!(
        denied > rows / 20 && denied < rows - rows / 20,
        "{denied} of {rows} denied: the dice are loaded"
    );
}

fn read(policy: &serde_json::Value) -> NetworkPolicy {
    serde_json::from_value(policy.clone()).expect("a NetworkPolicy")
}

fn name(end: End) -> String {
    end.pod.map_or_else(
        || end.ip.to_string(),
        |pod| format!("{}/{} ({})", pod.namespace, pod.name, end.ip),
    )
}
