//! Policy tables in memory: they take the same writes as the kernel's maps. The file that includes
//! this one has `PolicyWrite` in scope.

use std::net::IpAddr;

use proxy_common::net::{Addr4, Addr6, V4, V6};
use proxy_common::policy::ROOTS;
use proxy_ebpf::fake::Memory;

use super::PolicyWrite;

/// Applies a write to the tables of both families.
pub fn write(write: &PolicyWrite, v4: &mut Memory<V4>, v6: &mut Memory<V6>) {
    match write {
        PolicyWrite::Set(number, set) => {
            v4.port_sets.insert(*number, *set);
            v6.port_sets.insert(*number, *set);
        }
        PolicyWrite::Chunk(chunk, classes) => {
            for (class, set) in (0..).zip(classes.iter()) {
                v4.matrix.insert((*chunk, class), *set);
                v6.matrix.insert((*chunk, class), *set);
            }
        }
        PolicyWrite::Verdict { chunk, class, set } => {
            v4.matrix.insert((*chunk, *class), *set);
            v6.matrix.insert((*chunk, *class), *set);
        }
        PolicyWrite::Hashed(key, set) => {
            v4.verdicts.insert(*key, *set);
            v6.verdicts.insert(*key, *set);
        }
        PolicyWrite::Unhash(key) => {
            v4.verdicts.remove(key);
            v6.verdicts.remove(key);
        }
        PolicyWrite::Node(node, words) => {
            assert!(*node >= ROOTS, "a root is replaced");
            v4.directory.extend(
                (0..=u8::MAX)
                    .zip(words.iter())
                    .map(|(byte, word)| ((*node, byte), *word)),
            );
        }
        PolicyWrite::Word(node, byte, word) => _ = v4.directory.insert((*node, *byte), *word),
        PolicyWrite::Words {
            node,
            from,
            len,
            word,
        } => {
            let bytes = (0..*len).map(|step| from + step as u8);
            v4.directory
                .extend(bytes.map(|byte| ((*node, byte), *word)));
        }
        PolicyWrite::Exact(addr, class) => _ = v6.exact.insert(six(*addr), *class),
        PolicyWrite::DeleteExact(addr) => _ = v6.exact.remove(&six(*addr)),
        PolicyWrite::Prefix(prefix, class) => match prefix.addr() {
            IpAddr::V4(addr) => {
                _ = v4
                    .prefixes
                    .insert((Addr4::from(addr), prefix.prefix_len().into()), *class)
            }
            addr => {
                _ = v6
                    .prefixes
                    .insert((six(addr), prefix.prefix_len().into()), *class)
            }
        },
        PolicyWrite::DeletePrefix(prefix) => match prefix.addr() {
            IpAddr::V4(addr) => {
                _ = v4
                    .prefixes
                    .remove(&(Addr4::from(addr), prefix.prefix_len().into()))
            }
            addr => _ = v6.prefixes.remove(&(six(addr), prefix.prefix_len().into())),
        },
        PolicyWrite::Rows(pod_id, rows) => {
            v4.rows.insert(*pod_id, *rows);
            v6.rows.insert(*pod_id, *rows);
        }
        PolicyWrite::Veth(device, veth) => {
            v4.veths.insert(*device, *veth);
            v6.veths.insert(*device, *veth);
        }
        PolicyWrite::DeleteVeth(device) => {
            v4.veths.remove(device);
            v6.veths.remove(device);
        }
    }
}

fn six(addr: IpAddr) -> Addr6 {
    match addr {
        IpAddr::V6(addr) => addr.into(),
        IpAddr::V4(addr) => panic!("{addr} among IPv6"),
    }
}
