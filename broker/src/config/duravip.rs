//! The three options that make the address of a listener or binding float between hosts.

use super::reader::Reader;
use super::source::Spanned;

/// The DuraVIP options of a scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DuraVip {
    /// The address is added on the host of the cluster that owns it.
    pub enable: bool,
    /// The node that should own the address while that node is up.
    pub preference: Option<Spanned<String>>,
    /// The binding, by name or address, whose owner also owns this address.
    pub follow: Option<Spanned<String>>,
}

impl DuraVip {
    /// Whether this address floats: the broker adds it to and removes it from an interface.
    pub fn floats(&self) -> bool {
        self.enable || self.follow.is_some()
    }

    /// Reads the options of a section; options that it lacks are inherited from the outer scope.
    pub(crate) fn read(reader: &mut Reader<'_, '_>, outer: &DuraVip) -> Self {
        DuraVip {
            enable: reader.boolean("enable_duravip").unwrap_or(outer.enable),
            preference: reader.text("duravip_preference").or_else(|| outer.preference.clone()),
            follow: reader.text("duravip_follow").or_else(|| outer.follow.clone()),
        }
    }
}
