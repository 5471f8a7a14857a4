//! Scenarios: objects in, readable dump of the contents out, side by side in
//! `tests/fixtures/*.txt`.
//!
//! A scenario has sections `-- args --`, `-- host --`, `-- objects --`, `-- contents --` and `--
//! said --`. With `UPDATE_FIXTURES=1` the last two are written anew, to be read before they are
//! committed.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use clap::Parser;
use portway::cli::{Cli, Command};
use portway::compile::compile_reporting;
use portway::model::{Links, Snapshot, State};
use portway::source::SourceSettings;
use portway::source::manifests::Directory;
use proxy_common::net::{Device, IfIndex};

#[test]
fn contents_are_as_the_fixtures_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in fs::read_dir(&dir).expect("fixtures") {
        let path = entry.expect("a fixture").path();
        let text = fs::read_to_string(&path).expect("a fixture");
        let scenario = Scenario::parse(&text);
        let got = scenario.with_results();
        seen += 1;
        if got == text {
            continue;
        }
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            fs::write(&path, &got).expect("written");
        } else {
            wrong.push(format!("{}: is now\n{got}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 8, "only {seen} fixtures were found");
}

struct Scenario<'a> {
    about: &'a str,
    args: &'a str,
    host: &'a str,
    objects: &'a str,
}

impl<'a> Scenario<'a> {
    fn parse(text: &'a str) -> Self {
        let section = |name: &str| {
            let start = text
                .split_once(&format!("-- {name} --\n"))
                .unwrap_or_else(|| panic!("no section {name}"))
                .1;
            start.split_once("\n-- ").map_or(start, |(body, _)| body)
        };
        let about = text.split_once("-- args --").expect("args").0;
        Self {
            about,
            args: section("args"),
            host: section("host"),
            objects: section("objects"),
        }
    }

    fn with_results(&self) -> String {
        let (contents, said) = self.run();
        let Self {
            about,
            args,
            host,
            objects,
        } = self;
        let parts = [
            ("args", args),
            ("host", host),
            ("objects", objects),
            ("contents", &&*contents),
            ("said", &&*said),
        ];
        parts
            .iter()
            .fold((*about).to_owned(), |mut text, (name, body)| {
                write!(text, "-- {name} --\n{}\n", body.trim_end()).expect("a string");
                text
            })
    }

    fn run(&self) -> (String, String) {
        let typed = ["portway", "agent", "--manifests", "unused"]
            .into_iter()
            .chain(self.args.split_whitespace());
        let Command::Agent(args) = Cli::try_parse_from(typed).expect("args").command else {
            panic!("no agent")
        };
        let settings = args.settings().expect("settings");
        let SourceSettings::Manifests { ranges, .. } = settings.source else {
            panic!("no manifests")
        };
        let mut directory = Directory::new("unused".into());
        directory.take("objects".into(), self.objects.to_owned(), None);
        let mut snapshot = Snapshot {
            settings: settings.service,
            links: links(self.host),
            ..Snapshot::default()
        };
        for update in directory.updates(&ranges) {
            _ = snapshot.state.apply(update);
        }
        let (contents, conflicts) = compile_reporting(&snapshot);
        let State { invalid, flaws, .. } = &snapshot.state;
        let invalid = invalid
            .values()
            .chain(flaws.values().flatten())
            .map(ToString::to_string);
        let said: Vec<_> = invalid
            .chain(conflicts.iter().map(ToString::to_string))
            .collect();
        (contents.to_string(), said.join("\n"))
    }
}

/// Lines `device INDEX ADDRESS…` (the first of a family is its masquerade address), `address INDEX
/// ADDRESS…`, `pod INDEX ADDRESS…`.
fn links(text: &str) -> Links {
    let mut links = Links::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(kind) = words.next() else { continue };
        let index = IfIndex(words.next().and_then(|w| w.parse().ok()).expect("an index"));
        for addr in words.map(|word| word.parse::<IpAddr>().expect("an address")) {
            match kind {
                "pod" => _ = links.pods.insert(addr, index),
                "device" | "address" => _ = links.host_addresses.insert(addr, index),
                other => panic!("unknown word {other}"),
            }
            if kind == "device" {
                let device = links.devices.entry(index).or_insert(Device {
                    mtu: 1500,
                    ..Device::default()
                });
                match addr {
                    IpAddr::V4(v4) if device.masquerade4 == Default::default() => {
                        device.masquerade4 = v4.into()
                    }
                    IpAddr::V6(v6) if device.masquerade6 == Default::default() => {
                        device.masquerade6 = v6.into()
                    }
                    IpAddr::V4(_) | IpAddr::V6(_) => {}
                }
            }
        }
    }
    links
}
