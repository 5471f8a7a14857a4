//! Firewall rules as far as they matter here, read leniently from `nft -j list ruleset` and from
//! `iptables-save`.
//!
//! A strict reader of nftables would lose a whole rule to one expression that it does not know, and
//! with it a `drop`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A table with its chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The tool and the family, for people: `nftables ip`, `iptables`, `ip6tables`.
    pub from: String,
    /// Its name.
    pub name: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A chain of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The hook that packets enter the chain by, if it is a base chain: `forward`.
    pub hook: Option<String>,
    /// The verdict for packets that no rule decides.
    pub policy: Policy,
    /// The possible effects of its rules, in their order.
    pub steps: Vec<Step>,
}

/// The verdict at the end of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on.
    #[default]
    Accept,
    /// It does not.
    Drop,
}

/// The effects of a rule that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Drop or reject.
    Refuse,
    /// Go on in the chain of this name.
    To(String),
}

#[derive(Deserialize)]
struct NftChain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct NftRule {
    family: String,
    table: String,
    chain: String,
    #[serde(default)]
    expr: Vec<Value>,
}

#[derive(Deserialize)]
struct NftTable {
    family: String,
    name: String,
}

/// Returns the tables of a ruleset in nftables' JSON, without the parts that cannot be read.
pub fn from_nft(json: &str) -> Vec<Table> {
    let ruleset: Value = serde_json::from_str(json).unwrap_or_default();
    let mut tables = Tables::new();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        read_object(&mut tables, object);
    }
    tables.into_values().collect()
}

/// Tables by family and name.
type Tables = BTreeMap<(String, String), Table>;

fn read_object(tables: &mut Tables, object: &Value) {
    if let Ok(NftTable { family, name }) = NftTable::deserialize(&object["table"]) {
        nft_table(tables, family, name);
    } else if let Ok(chain) = NftChain::deserialize(&object["chain"]) {
        let policy = if chain.policy.as_deref() == Some("drop") {
            Policy::Drop
        } else {
            Policy::Accept
        };
        let known = nft_table(tables, chain.family, chain.table)
            .chains
            .entry(chain.name)
            .or_default();
        (known.hook, known.policy) = (chain.hook, policy);
    } else if let Ok(NftRule {
        family,
        table,
        chain,
        expr,
    }) = NftRule::deserialize(&object["rule"])
    {
        let chain = nft_table(tables, family, table)
            .chains
            .entry(chain)
            .or_default();
        chain.steps.extend(expr.iter().flat_map(nft_steps));
    }
}

fn nft_table(tables: &mut Tables, family: String, name: String) -> &mut Table {
    let from = format!("nftables {family}");
    tables
        .entry((family, name.clone()))
        .or_insert_with(|| Table {
            from,
            name,
            chains: BTreeMap::new(),
        })
}

/// Returns the effects of an expression: verdicts, also those in a map of verdicts, and the target
/// REJECT of iptables.
fn nft_steps(expression: &Value) -> Vec<Step> {
    let Some(fields) = expression.as_object() else {
        return Vec::new();
    };
    let steps = fields.iter().flat_map(|(key, value)| match key.as_str() {
        "drop" | "reject" => vec![Step::Refuse],
        "jump" | "goto" => value["target"]
            .as_str()
            .map(|target| Step::To(target.to_owned()))
            .into_iter()
            .collect(),
        "xt" if value["type"] == "target" && value["name"] == "REJECT" => vec![Step::Refuse],
        "vmap" => value["data"]["set"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|pair| nft_steps(&pair[1]))
            .collect(),
        _ => Vec::new(),
    });
    steps.collect()
}

/// Returns the tables that `iptables-save` prints; `tool` is its name without `-save`.
pub fn from_iptables(tool: &str, text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table {
                from: tool.to_owned(),
                name: name.trim().to_owned(),
                chains: BTreeMap::new(),
            });
        } else if let Some(table) = tables.last_mut() {
            read_line(table, line);
        }
    }
    tables
}

fn read_line(table: &mut Table, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    if let [chain, policy, ..] = words[..]
        && let Some(name) = chain.strip_prefix(':')
    {
        let chain = table.chains.entry(name.to_owned()).or_default();
        // A chain of the user's own has no policy.
        chain.hook = (policy != "-").then(|| name.to_lowercase());
        chain.policy = if policy == "DROP" {
            Policy::Drop
        } else {
            Policy::Accept
        };
    } else if let ["-A", chain, ..] = words[..] {
        let target = words
            .windows(2)
            .rev()
            .find(|pair| pair[0] == "-j" || pair[0] == "-g")
            .map(|pair| pair[1]);
        let step = match target {
            Some("DROP" | "REJECT") => Some(Step::Refuse),
            Some(other) => Some(Step::To(other.to_owned())),
            None => None,
        };
        table
            .chains
            .entry(chain.to_owned())
            .or_default()
            .steps
            .extend(step);
    }
}
