//! CRC32c of SCTP: the change of the checksum for a change of the packet's first bytes. CRC32c is
//! linear, so the rest of the packet is not read.

/// The polynomial, reflected (RFC 9260, appendix A).
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Number of bits of a packet's length.
const LENGTH_BITS: usize = 16;

/// The remainder after 2^k more zero bytes, by k and by byte of the remainder before. It takes few
/// loads, because the verifier follows each on every path that leads here.
static LONGER: [[[u32; 256]; 4]; LENGTH_BITS] = {
    let mut tables = [[[0; 256]; 4]; LENGTH_BITS];
    // x^8, and from there on the squares; the first bit of a reflected polynomial is the highest
    // one.
    let (mut power, mut k) = (1 << 23, 0);
    while k < LENGTH_BITS {
        let mut byte = 0;
        while byte < 4 {
            let mut value = 1;
            while value < 256 {
                let bit = multiply(1 << (value as u32).trailing_zeros() << (8 * byte), power);
                tables[k][byte][value] = tables[k][byte][value & (value - 1)] ^ bit;
                value += 1;
            }
            byte += 1;
        }
        power = multiply(power, power);
        k += 1;
    }
    tables
};

/// Returns the contribution of the first four bytes of a packet to its checksum. The packet has
/// `len` bytes, at most 65,535. Called with the exclusive or of two first words, it returns the
/// exclusive or of the two checksums. All words are little-endian.
#[inline(always)]
pub fn contribution(first: u32, len: u32) -> u32 {
    let (mut remainder, mut k) = (first, 0);
    while k < LENGTH_BITS {
        let [a, b, c, d] = remainder.to_le_bytes().map(usize::from);
        let longer = LONGER[k][0][a] ^ LONGER[k][1][b] ^ LONGER[k][2][c] ^ LONGER[k][3][d];
        // Without a branch: the verifier would follow its two paths sixteen times.
        let wanted = 0_u32.wrapping_sub(len >> k & 1);
        remainder = (longer & wanted) | (remainder & !wanted);
        k += 1;
    }
    remainder
}

/// Returns the product of two remainders.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut shifted, mut bit) = (0, b, 0);
    while bit < 32 {
        product ^= shifted & 0_u32.wrapping_sub(a >> (31 - bit) & 1);
        shifted = (shifted >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(shifted & 1));
        bit += 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// Compared with an independent implementation.
    #[test]
    fn a_changed_word_changes_the_checksum_by_its_contribution() {
        for len in [12_usize, 13, 16, 100, 255, 256, 1480, 8980, 65_515] {
            let mut packet = vec![0; len];
            packet
                .iter_mut()
                .enumerate()
                .for_each(|(at, byte)| *byte = (at * 7 + len) as u8);
            for (old, new) in [(0x3039_0050_u32, 0xd431_1f90_u32), (0, u32::MAX), (7, 7)] {
                packet[..4].copy_from_slice(&old.to_le_bytes());
                let before = crc32c::crc32c(&packet);
                packet[..4].copy_from_slice(&new.to_le_bytes());
                assert_eq!(
                    before ^ contribution(old ^ new, len as u32),
                    crc32c::crc32c(&packet),
                    "{len} bytes"
                );
            }
        }
    }
}
