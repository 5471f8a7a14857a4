//! One packet at one hook: the verdict, and the bytes before and after.

use super::*;

/// The result of a packet at a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// The action or the reason.
    pub said: Result<Action, Reason>,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// Runs a hook's program: it hands to the library what its EtherType says is of the family.
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
    /// The packet went on by `action`, with all checksums right.
    #[track_caller]
    pub fn goes(&self, action: Action) -> Segment {
        assert_eq!(self.said, Ok(action));
        Segment::read(&self.after).expect("a valid packet")
    }
    /// The packet was left alone, to the last bit.
    #[track_caller]
    pub fn untouched(&self) {
        assert_eq!(self.said, Ok(Action::Untouched));
        assert_eq!(self.before, self.after);
    }
    /// The packet was dropped.
    #[track_caller]
    pub fn dropped(&self, reason: Reason) {
        assert_eq!(self.said, Err(reason));
    }
    /// The packet became an ICMP message that leaves by `device`.
    #[track_caller]
    pub fn refused(&self, device: IfIndex) -> Icmp {
        self.tells(Action::Transmit(device))
    }
    /// The packet is an ICMP message that went on by `action`, with all checksums right.
    #[track_caller]
    pub fn tells(&self, action: Action) -> Icmp {
        assert_eq!(self.said, Ok(action));
        Icmp::read(&self.after).expect("a valid ICMP message")
    }
    /// The bytes as they left.
    pub fn bytes(&self) -> &[u8] {
        &self.after
    }
}
