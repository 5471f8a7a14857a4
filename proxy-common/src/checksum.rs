//! Arithmetic of Internet checksums, and the hash that chooses backends and ports.

/// Adds two 32-bit partial sums in one's complement.
///
/// The sum is folded so far that nothing is carried: the compiler makes a branch of a carry, and
/// the branches of several carries are more paths than old verifiers walk.
#[inline(always)]
pub const fn sum_add(a: u32, b: u32) -> u32 {
    partial(a as u64 + b as u64)
}

/// Returns the partial sum of up to 65,536 words that were added up.
#[inline(always)]
pub(crate) const fn partial(sum: u64) -> u32 {
    ((sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32)) as u32
}

/// Returns the partial sum that turns `from` into `to`: add it to the complement of a checksum.
#[inline(always)]
pub const fn sum_diff(from: u32, to: u32) -> u32 {
    sum_add(to, !from)
}

/// Folds a 32-bit partial sum to 16 bits, without complementing it.
#[inline(always)]
pub const fn sum_fold(sum: u32) -> u16 {
    let s = (sum & 0xffff) + (sum >> 16);
    ((s & 0xffff) + (s >> 16)) as u16
}

/// Returns the checksum after its data changed by `diff`, both in memory order (RFC 1624), as the
/// kernel's `bpf_l4_csum_replace` does.
#[inline(always)]
pub const fn checksum_update(checksum: u16, diff: u32) -> u16 {
    !sum_fold(sum_add(diff, !(checksum as u32)))
}

/// Mixes three words to one, keyed by `secret`: the final mix of Bob Jenkins' public-domain
/// `lookup3`, which the kernel's `jhash_3words` uses too.
#[inline(always)]
pub const fn hash3(a: u32, b: u32, c: u32, secret: u64) -> u32 {
    let mut a = a.wrapping_add(secret as u32);
    let mut b = b.wrapping_add((secret >> 32) as u32);
    let mut c = c.wrapping_add(0xdead_beef);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
