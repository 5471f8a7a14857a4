//! Owns the act about two mistakes in manifests, which `portway doctor` finds.

use anyhow::{Context, Result};

use super::acts::{WEB, from_outside};
use super::say::Say;
use super::stage::Stage;
use crate::lab::topology::Family;

const MISTAKES: &str = "\
# Requests the nodePort of web-nodeport.
apiVersion: v1
kind: Service
metadata:
  name: copycat
spec:
  type: NodePort
  selector: { app: demo }
  ports: [{ port: 80, nodePort: 30080 }]
---
# Selects no pod: dmeo is a typo.
apiVersion: v1
kind: Service
metadata:
  name: lost
spec:
  selector: { app: dmeo, tier: web }
  ports: [{ port: 80 }]
";

/// Makes two mistakes of beginners, and runs `portway doctor`.
///
/// # Errors
/// If the manifest cannot be written, or doctor cannot be started.
pub fn mistakes(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step("Two mistakes: Service copycat requests nodePort 30080, which is taken; Service lost has a typo in its selector");
    stage.write("mistakes.yaml", MISTAKES)?;
    let node = stage.lab.node("node1")?;
    let directory = stage.manifests.to_string_lossy().into_owned();
    let report = stage.portway(
        node,
        &[
            "doctor",
            "--node-name",
            node.name(),
            "--manifests",
            &directory,
        ],
    )?;
    say.show("$ portway doctor --node-name node1 --manifests DIR");
    report
        .lines()
        .for_each(|line| say.show(format!("  {line}")));
    let about = |words: &[&str]| {
        report
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    let duplicate = if about(&["30080", "copycat", "web-nodeport"]) {
        Vec::new()
    } else {
        vec!["doctor does not name both Services and the port".to_owned()]
    };
    say.expect(
        "doctor names the two Services that request nodePort 30080",
        &duplicate,
    );
    let nearest = report.contains("lost") && report.contains("dmeo") && report.contains("demo");
    say.expect(
        "doctor reports that Service lost selects no pod, and suggests similar labels",
        &if nearest {
            Vec::new()
        } else {
            vec!["doctor does not report it".to_owned()]
        },
    );
    let tally = from_outside(stage, node, Family::V4)?;
    let against: Vec<String> = (tally.pods() != WEB || tally.unserved() > 0)
        .then(|| tally.to_string())
        .into_iter()
        .collect();
    say.expect(
        "the Service that had the nodePort first still works",
        &against,
    );
    std::fs::remove_file(stage.manifests.join("mistakes.yaml")).context("remove mistakes.yaml")?;
    say.done("the mistakes are removed");
    Ok(())
}
