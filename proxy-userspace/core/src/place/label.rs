//! Names of service ports as the map `NAMES` holds them.

use std::borrow::Cow;
use std::hash::Hasher;

/// The longest text that a `Name` holds, in bytes.
const LABEL: usize = 188;

/// Returns the name as `NAMES` can hold it. A name that is too long ends in a hash of the whole, so
/// that two different names stay different.
pub fn label(service: &str) -> Cow<'_, str> {
    if service.len() <= LABEL {
        return Cow::Borrowed(service);
    }
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(service.as_bytes());
    let end = service.floor_char_boundary(LABEL - 17);
    Cow::Owned(format!("{}~{:016x}", &service[..end], hasher.finish()))
}
