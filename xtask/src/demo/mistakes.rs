//! Owns the act about two mistakes in manifests, which `portway doctor` finds.

use anyhow::{Context, Result};

use super::acts::{WEB, from_outside};
use super::say::Say;
use super::stage::Stage;
use crate::lab::topology::Family;

const MISTAKES: &str = "\
# Wants a nodePort that web-nodeport has.
apiVersion: v1
kind: Service
metadata:
  name: copycat
spec:
  type: NodePort
  selector: { app: demo }
  ports: [{ port: 80, nodePort: 30080 }]
---
# Selects pods that nobody has.
apiVersion: v1
kind: Service
metadata:
  name: lost
spec:
  selector: { app: dmeo, tier: web }
  ports: [{ port: 80 }]
";

/// Two mistakes that beginners make, and what `portway doctor` says.
///
/// # Errors
/// If the manifest cannot be written, or doctor cannot be started.
pub fn mistakes(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step("Two mistakes: Service copycat wants nodePort 30080 as well, Service lost selects app: dmeo");
    stage.write("mistakes.yaml", MISTAKES)?;
    let node = stage.lab.node("node1")?;
    let directory = stage.manifests.to_string_lossy().into_owned();
    let said = stage.portway(
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
    said.lines().for_each(|line| say.show(format!("  {line}")));
    let about = |words: &[&str]| {
        said.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    let unsaid = |what: &str| vec![format!("doctor does not {what}")];
    let duplicate = if about(&["30080", "copycat", "web-nodeport"]) {
        Vec::new()
    } else {
        unsaid("name both Services and the port")
    };
    say.expect("doctor names the two Services that want 30080", &duplicate);
    let nearest = said.contains("lost") && said.contains("dmeo") && said.contains("demo");
    say.expect(
        "doctor says that lost finds no pod, and which labels come near",
        &if nearest {
            Vec::new()
        } else {
            unsaid("say so")
        },
    );
    let tally = from_outside(stage, node, Family::V4)?;
    let against: Vec<String> = (tally.pods() != WEB || tally.unserved() > 0)
        .then(|| tally.to_string())
        .into_iter()
        .collect();
    say.expect(
        "meanwhile the Service that had the port first serves as before",
        &against,
    );
    std::fs::remove_file(stage.manifests.join("mistakes.yaml")).context("remove mistakes.yaml")?;
    say.done("the mistakes are removed");
    Ok(())
}
