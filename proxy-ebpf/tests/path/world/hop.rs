//! One packet at one hook: the verdict, and the bytes before and after.

use super::*;

/// The result of a packet at a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// The action, or the reason of a drop.
    pub said: Result<Action, Reason>,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// Runs a hook as the programs do: only packets of the family's EtherType reach the library.
pub fn hop<F: Net>(before: Vec<u8>, hook: impl Fn(&mut Bytes) -> Result<Action, Reason>) -> Hop {
    let mut bytes = Bytes::received(before.clone());
    let said = if ethertype(&bytes) == Some(F::ETHERTYPE) {
        hook(&mut bytes)
    } else {
        Ok(Action::Untouched)
    };
    Hop {
        said,
        before,
        after: bytes.bytes,
    }
}

impl Hop {
    /// Asserts the action, and returns the packet; all its checksums are right.
    #[track_caller]
    pub fn goes(&self, action: Action) -> Segment {
        assert_eq!(self.said, Ok(action));
        Segment::read(&self.after).expect("a valid packet")
    }
    /// Asserts that the packet is untouched, to the last bit.
    #[track_caller]
    pub fn untouched(&self) {
        assert_eq!(self.said, Ok(Action::Untouched));
        assert_eq!(self.before, self.after);
    }
    /// Asserts that the packet was dropped for this reason.
    #[track_caller]
    pub fn dropped(&self, reason: Reason) {
        assert_eq!(self.said, Err(reason));
    }
    /// Asserts that the packet became an ICMP error that leaves by `device`, and returns it.
    #[track_caller]
    pub fn refused(&self, device: IfIndex) -> Icmp {
        self.tells(Action::Transmit(device))
    }
    /// Asserts the action, and returns the ICMP message; all its checksums are right.
    #[track_caller]
    pub fn tells(&self, action: Action) -> Icmp {
        assert_eq!(self.said, Ok(action));
        Icmp::read(&self.after).expect("a valid ICMP message")
    }
    /// The packet's bytes after the hook.
    pub fn bytes(&self) -> &[u8] {
        &self.after
    }
}
