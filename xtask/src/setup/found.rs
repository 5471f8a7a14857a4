//! The result of looking for a component.

/// A component that is installed, described for people.
pub(super) struct Found(pub String);
