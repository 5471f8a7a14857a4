//! The task over real maps and a real network, with the test as its source.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::net::{AddressFlags, Device, IfIndex, Protocol};
use proxy_common::service::BackendFlags;

use super::*;
use crate::contents::Contents;
use crate::dataplane::{CgroupChoice, Maps, Options, StateDir, XdpChoice, names_in, unload};
use crate::events::Events;
use crate::health::NodeVitals;
use crate::links;
use crate::model::{
    EndpointSlice, Family, Kind, Node, Object, ObjectName, ObjectRef, Phase, Pod, Proxied, Service,
    ServicePort, Settings, SliceEndpoint, SlicePort, State, TargetPort, TrafficPolicy,
};
use crate::testing::Namespace;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn node() -> Update {
    let node = Node {
        internal_ips: vec![addr("192.0.2.1")],
        ..Node::default()
    };
    Update::Apply(Object::Node(ObjectName::cluster("n1"), node))
}

fn pod(name: &str, ip: &str) -> Update {
    let pod = Pod {
        addresses: vec![addr(ip)],
        node: Some("n1".into()),
        phase: Phase::Running,
        ready: true,
        ..Pod::default()
    };
    Update::Apply(Object::Pod(ObjectName::new("default", name), pod))
}

fn service(protocol: Protocol) -> Update {
    let port = ServicePort {
        name: "http".into(),
        protocol,
        port: 80,
        node_port: Some(30080),
        target: TargetPort::Number(80),
    };
    let service = Service {
        proxied: Proxied::Yes,
        cluster_ips: vec![addr("10.96.0.7")],
        external_ips: BTreeSet::new(),
        load_balancer_ips: BTreeSet::new(),
        source_ranges: BTreeSet::new(),
        ports: vec![port],
        selector: BTreeMap::new(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity: 0,
        annotations: Default::default(),
        health_check_node_port: None,
        publish_not_ready: false,
        created: None,
    };
    Update::Apply(Object::Service(ObjectName::new("default", "web"), service))
}

fn slice(protocol: Protocol, endpoints: &[(&str, bool)]) -> Update {
    let endpoint = |(ip, serving): &(&str, bool)| SliceEndpoint {
        addr: addr(ip),
        ready: *serving,
        serving: *serving,
        terminating: false,
        node: Some("n1".into()),
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
    };
    let slice = EndpointSlice {
        service: ObjectName::new("default", "web"),
        ports: vec![SlicePort {
            name: "http".into(),
            protocol,
            port: 80,
        }],
        family: Family::V4,
        triggered: None,
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    Update::Apply(Object::EndpointSlice(
        ObjectName::new("default", "web-1"),
        slice,
    ))
}

/// An agent without a source: the test is the source.
struct Agent {
    dir: StateDir,
    updates: mpsc::Sender<Update>,
    serving: watch::Receiver<Option<Arc<Serving>>>,
    vitals: watch::Receiver<Vitals>,
    tasks: tokio::task::JoinSet<Result<()>>,
}

impl Agent {
    fn start(root: &std::path::Path) -> Self {
        Self::start_with(root, XdpChoice::Auto)
    }

    fn start_with(root: &std::path::Path, xdp: XdpChoice) -> Self {
        let plane = Dataplane::open(&Options {
            state_dir: root.to_owned(),
            xdp,
            cgroup: CgroupChoice::Off,
        })
        .expect("open the data plane");
        let actual = plane.read().expect("read");
        let (serving_tx, serving) = watch::channel(None);
        let (vitals_tx, vitals) = watch::channel(Vitals::default());
        let (wanted_tx, wanted) = watch::channel(Wanted::default());
        let (found_tx, found) = watch::channel(None);
        let (updates, inbox) = mpsc::channel(100);
        let earlier = actual
            .pods()
            .iter()
            .map(|(addr, pod)| (*addr, pod.device))
            .collect();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(links::run(wanted, found_tx, earlier));
        let settings = Settings {
            node_name: "n1".into(),
            hz: 250,
            secret: 9,
            ..Settings::default()
        };
        let metrics = Arc::<Metrics>::default();
        let (reports, _) = Reports::new(Events::default(), metrics.clone(), Timestamp::now());
        let outputs = Outputs {
            wanted: wanted_tx,
            serving: serving_tx,
            departed: mpsc::unbounded_channel().0,
            gate: watch::channel(None).0,
            vitals: vitals_tx,
            reports,
            metrics,
        };
        let sync = Sync::new(
            Snapshot {
                settings,
                ..Snapshot::default()
            },
            plane,
            actual,
            outputs,
        );
        // Nobody says anything: the channel is closed, and that ends nothing.
        let cni_pods = watch::channel(cni::CniPods::new()).1;
        tasks.spawn(sync.run(Inputs {
            updates: inbox,
            found,
            cni_pods,
            denied: mpsc::channel(1).1,
        }));
        Self {
            dir: StateDir::at(root),
            updates,
            serving,
            vitals,
            tasks,
        }
    }

    async fn tell(&self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.updates.send(update).await.expect("the task lives");
        }
    }

    fn kernel(&self) -> Actual {
        Maps::from_pins(&self.dir)
            .expect("open the pins")
            .read()
            .expect("read")
    }

    /// Waits until the kernel is as it should be.
    async fn until(&self, what: &str, is: impl Fn(&Contents) -> bool) -> Contents {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let contents = self.kernel().contents();
            if is(&contents) {
                return contents;
            }
            assert!(Instant::now() < end, "{what}: not within 10 s:\n{contents}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// A node with an uplink and a pod behind a bridge.
fn wired() -> (Namespace, Namespace, Namespace) {
    let (host, lan, pod) = (Namespace::new(), Namespace::new(), Namespace::new());
    host.veth("eth0", &lan, "node");
    host.ip("addr add 192.0.2.1/24 dev eth0");
    host.ip("link add cni0 type bridge");
    host.ip("link set cni0 up");
    host.ip("addr add 10.244.1.1/24 dev cni0");
    host.veth("pod0", &pod, "eth0");
    host.ip("link set pod0 master cni0");
    pod.ip("addr add 10.244.1.2/24 dev eth0");
    (host, lan, pod)
}

fn all(protocol: Protocol) -> Vec<Update> {
    vec![
        node(),
        pod("a", "10.244.1.2"),
        service(protocol),
        slice(protocol, &[("10.244.1.2", true), ("10.244.2.2", true)]),
    ]
}

#[test]
fn nothing_is_written_before_the_lists_are_complete_and_then_everything_is() {
    let (host, _lan, _pod) = wired();
    let root = host.state_dir();
    host.block_on(async move {
        let agent = Agent::start(&root);
        agent.tell(all(Protocol::TCP)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(agent.kernel().contents(), Contents::default(), "V1");
        agent.tell([Update::Synced]).await;
        let found = |contents: &Contents| {
            contents
                .pods
                .values()
                .any(|device| *device != IfIndex::NONE)
        };
        let contents = agent.until("the pod's device", found).await;
        assert_eq!(contents.frontends.len(), 2);
        assert_eq!(contents.devices.len(), 1);
        assert_eq!(
            contents.addresses[&addr("192.0.2.1")],
            AddressFlags(AddressFlags::HOST | AddressFlags::NODE_PORTS | AddressFlags::NODE)
        );
        let flags: Vec<_> = contents
            .frontends
            .values()
            .flat_map(|target| &target.backends.cluster_only)
            .map(|e| e.flags)
            .collect();
        assert!(flags.contains(&BackendFlags::POD), "{flags:?}");
        assert!(!agent.vitals.borrow().waiting());
        agent.kill().await;
    });
}

#[test]
fn a_restart_keeps_ids_and_devices_and_writes_nothing() {
    let (host, _lan, pod0) = wired();
    let root = host.state_dir();
    let before = host.block_on({
        let root = root.clone();
        async move {
            let agent = Agent::start(&root);
            agent
                .tell(all(Protocol::TCP).into_iter().chain([Update::Synced]))
                .await;
            agent
                .until("the pod's device", |c| {
                    c.pods.values().any(|device| *device != IfIndex::NONE)
                })
                .await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let kernel = agent.kernel();
            agent.kill().await;
            kernel
        }
    });
    pod0.ip("link set eth0 down");
    host.block_on(async move {
        let agent = Agent::start(&root);
        agent
            .tell(all(Protocol::TCP).into_iter().chain([Update::Synced]))
            .await;
        let mut serving = agent.serving.clone();
        serving
            .wait_for(Option::is_some)
            .await
            .expect("the first sync");
        let after = agent.kernel();
        assert_eq!(
            after.services(),
            before.services(),
            "the same ids and generations"
        );
        assert_eq!(
            after.contents(),
            before.contents(),
            "the pod's device too, though the pod does not answer now"
        );
        agent.kill().await;
    });
}

#[test]
fn a_changed_endpoint_gets_new_slots_and_the_old_ones_go_after_a_while() {
    let (host, _lan, _pod) = wired();
    let root = host.state_dir();
    host.block_on(async move {
        let agent = Agent::start(&root);
        agent
            .tell(all(Protocol::TCP).into_iter().chain([Update::Synced]))
            .await;
        agent
            .until("the service", |contents| contents.frontends.len() == 2)
            .await;
        agent
            .tell([slice(Protocol::TCP, &[("10.244.1.2", true)])])
            .await;
        agent
            .until("the change", |contents| {
                contents
                    .frontends
                    .values()
                    .all(|target| target.backends.cluster_only.len() == 1)
            })
            .await;
        let end = Instant::now() + Duration::from_secs(5);
        while !crate::place::retire(&agent.kernel()).is_empty() {
            assert!(Instant::now() < end, "slots are left over");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let gone = ObjectRef {
            kind: Kind::Service,
            name: ObjectName::new("default", "web"),
        };
        agent.tell([Update::Delete(gone)]).await;
        agent
            .until("the end of the service", |contents| {
                contents.frontends.is_empty()
            })
            .await;
        agent.kill().await;
    });
}

#[test]
fn v14_the_sweep_hears_of_endpoints_that_serve_no_more() {
    let (host, _lan, _pod) = wired();
    let root = host.state_dir();
    host.block_on(async move {
        let mut agent = Agent::start(&root);
        agent
            .tell(all(Protocol::UDP).into_iter().chain([Update::Synced]))
            .await;
        let known = |n: usize| {
            move |s: &Option<Arc<Serving>>| {
                s.as_ref().is_some_and(|s| {
                    s.endpoints.values().all(|e| e.len() == n) && s.endpoints.len() == 1
                })
            }
        };
        agent.serving.wait_for(known(2)).await.expect("both serve");
        agent
            .tell([slice(
                Protocol::UDP,
                &[("10.244.1.2", true), ("10.244.2.2", false)],
            )])
            .await;
        agent.serving.wait_for(known(1)).await.expect("one serves");
        agent.kill().await;
    });
}

/// The pod was in the maps, and its device without programs until another one came.
#[test]
fn a_device_that_is_found_just_as_objects_change_gets_its_programs() {
    let (host, _lan, _pod) = wired();
    let root = host.state_dir();
    host.block_on(async move {
        let plane = Dataplane::open(&Options {
            state_dir: root,
            xdp: XdpChoice::Auto,
            cgroup: CgroupChoice::Off,
        })
        .expect("open the data plane");
        let actual = plane.read().expect("read");
        let (wanted_tx, wanted) = watch::channel(Wanted::default());
        let metrics = Arc::<Metrics>::default();
        let (reports, _) = Reports::new(Events::default(), metrics.clone(), Timestamp::now());
        let (serving, vitals) = (
            watch::Sender::new(None),
            watch::Sender::new(Vitals::default()),
        );
        let gate = watch::channel(None).0;
        let outputs = Outputs {
            wanted: wanted_tx,
            serving,
            departed: mpsc::unbounded_channel().0,
            vitals,
            gate,
            reports,
            metrics,
        };
        let settings = Settings {
            node_name: "n1".into(),
            hz: 250,
            secret: 9,
            ..Settings::default()
        };
        let mut sync = Sync::new(
            Snapshot {
                settings,
                ..Snapshot::default()
            },
            plane,
            actual,
            outputs,
        );
        all(Protocol::TCP)
            .into_iter()
            .chain([Update::Synced])
            .for_each(|update| _ = sync.take(update));
        sync.ask_links();

        let (found_tx, mut looked) = watch::channel(None);
        let looking = tokio::spawn(links::run(wanted, found_tx, BTreeMap::new()));
        let whole = looked.wait_for(|found: &Option<Found>| {
            found
                .as_ref()
                .is_some_and(|found| !found.links.pods.is_empty())
        });
        let whole = whole.await.expect("links lives").clone().expect("found");
        looking.abort();
        let device = whole.links.pods[&addr("10.244.1.2")];
        let mut without = whole.clone();
        without.links.pods.clear();

        let (tell, mut found) = watch::channel(Some(without));
        sync.first_until = Some(Instant::now());
        sync.step(&mut found).expect("the first sync");
        assert!(sync.plane.hooks().iter().all(|hook| hook.device != device));
        tell.send(Some(whole)).expect("somebody listens");
        sync.dirty.objects = true;
        sync.step(&mut found).expect("a sync because of an object");
        assert!(
            sync.plane.hooks().iter().any(|hook| hook.device == device),
            "{:?}",
            sync.plane.hooks()
        );
    });
}

/// Another program holds the place, and is removed: no event reports that.
#[test]
fn a_hook_that_was_refused_is_tried_again_without_news() {
    let (host, lan, _pod) = wired();
    let (root, elsewhere) = (host.state_dir(), lan.state_dir());
    host.block_on(async move {
        let options = Options {
            state_dir: elsewhere.clone(),
            xdp: XdpChoice::Native,
            cgroup: CgroupChoice::Off,
        };
        let mut occupant = Dataplane::open(&options).expect("open the data plane");
        let eth0 = IfIndex(nix::net::if_::if_nametoindex("eth0").expect("the device exists"));
        let mut found = Found {
            present: [eth0].into(),
            ..Found::default()
        };
        found.names.insert(eth0, "eth0".into());
        found.drivers.insert(eth0, links::Driver::Software);
        found.links.devices.insert(eth0, Device::default());
        assert_eq!(occupant.attach(&found.devices()).expect("attach").len(), 0);

        let agent = Agent::start_with(&root, XdpChoice::Native);
        agent
            .tell(all(Protocol::TCP).into_iter().chain([Update::Synced]))
            .await;
        let hooks = || names_in(&agent.dir.hooks()).expect("list the hooks");
        let xdp = || hooks().iter().any(|hook| hook.contains("xdp"));
        let begun = Instant::now();
        while hooks().len() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", hooks());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!xdp(), "{:?}", hooks());
        drop(occupant);
        unload(&elsewhere).await.expect("unload");
        let begun = Instant::now();
        while !xdp() {
            assert!(begun.elapsed() < 4 * RETRY, "{:?}", hooks());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        agent.kill().await;
    });
}

#[test]
fn v23_health_knows_how_the_node_is() {
    let state = |update: Update| {
        let mut state = State::default();
        let _changed = state.apply(update);
        state
    };
    let vitals = |state: &State| NodeVitals::of(state, "n1", NodeVitals::Unknown);
    assert_eq!(vitals(&State::default()), NodeVitals::Unknown);
    assert_eq!(vitals(&state(node())), NodeVitals::Present);
    assert_eq!(
        vitals(&state(Update::Apply(Object::Node(
            ObjectName::cluster("n2"),
            Node::default()
        )))),
        NodeVitals::Missing
    );
    let leaving = Node {
        leaving: true,
        ..Node::default()
    };
    assert_eq!(
        vitals(&state(Update::Apply(Object::Node(
            ObjectName::cluster("n1"),
            leaving
        )))),
        NodeVitals::Leaving
    );
}
