//! Owns the act about cluster DNS: a pod finds a Service by its name.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::acts::{REQUESTS, WEB, row_of_pods};
use super::say::{Say, Table};
use super::stage::{Stage, cluster_ip_and_node_port, dns_name};
use crate::lab::dns::{self, Record};
use crate::lab::probe::{self, Kind};
use crate::lab::topology::{Family, PodSpec, Serves};

/// A pod resolves a Service's name by cluster DNS, and sends requests to the address. Both use
/// cluster IPs.
///
/// # Errors
/// If DNS cannot be started.
pub fn cluster_ip_by_name(stage: &mut Stage, say: &mut Say) -> Result<()> {
    say.step(
        "A pod resolves the Service's name; cluster DNS is itself a Service with a cluster IP",
    );
    let server = start_dns(stage)?;
    let name = dns_name("web-nodeport");
    let tally_and_ip = stage.lab.pod("visitor")?.ns().run(|| {
        let ip = dns::resolve(server, &name, Family::V4)?;
        Ok((ip, probe::survey(Kind::Http, (ip, 80).into(), REQUESTS)))
    });
    let against = match &tally_and_ip {
        Ok((ip, tally)) => {
            let mut table = Table::new(["from pod visitor to", "web-1", "web-2", "web-3", "other"]);
            table.row(row_of_pods(&format!("http://{name}/ = {ip}"), tally));
            say.show(table);
            let own = stage.lab.pod("visitor")?.addresses().of(Family::V4);
            let right = tally.pods() == WEB && tally.unserved() == 0 && tally.clients() == [own];
            (!right)
                .then(|| format!("{tally}, seen as {:?}", tally.clients()))
                .into_iter()
                .collect()
        }
        Err(e) => vec![format!("{e:#}")],
    };
    say.expect(
        "the name resolves, all three pods answer, and they see the address of pod visitor",
        &against,
    );
    say.done("");
    Ok(())
}

/// Plays cluster DNS: a pod with the Services' names, and a Service in front of it.
fn start_dns(stage: &mut Stage) -> Result<SocketAddr> {
    let (ip, _) = cluster_ip_and_node_port(&stage.wait_for_frontend("default/web-nodeport:http")?)?;
    let record = Record {
        name: dns_name("web-nodeport"),
        address: ip,
    };
    let pod = PodSpec::new("dns-1")
        .namespace("kube-system")
        .label("k8s-app", "kube-dns")
        .serving_as("dns", 53, Serves::Dns);
    stage
        .lab
        .node_mut("node1")?
        .add_pod(pod.knowing(vec![record]))?;
    stage.write_cluster()?;
    stage.write("dns.yaml", DNS)?;
    stage
        .wait_for_frontend("kube-system/kube-dns:dns")?
        .first()
        .copied()
        .context("find the cluster IP of DNS")
}

const DNS: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
spec:
  clusterIP: 10.96.0.10
  selector: { k8s-app: kube-dns }
  ports: [{ name: dns, protocol: UDP, port: 53, targetPort: dns }]
";
