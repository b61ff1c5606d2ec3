//! The three options by which a listener or binding says that its address moves between hosts.

use super::reader::Reader;
use super::source::Spanned;

/// What a scope says about its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DuraVip {
    /// The address is put on whichever host of the cluster owns it.
    pub enable: bool,
    /// The node that should own it while it lives.
    pub preference: Option<Spanned<String>>,
    /// The binding, by name or address, whose owner also owns this address.
    pub follow: Option<Spanned<String>>,
}

impl DuraVip {
    /// Whether the broker puts this address on an interface.
    pub fn moves(&self) -> bool {
        self.enable || self.follow.is_some()
    }

    /// What the section says, over what an outer one said.
    pub(crate) fn read(reader: &mut Reader<'_, '_>, outer: &DuraVip) -> Self {
        DuraVip {
            enable: reader.boolean("enable_duravip").unwrap_or(outer.enable),
            preference: reader.text("duravip_preference").or_else(|| outer.preference.clone()),
            follow: reader.text("duravip_follow").or_else(|| outer.follow.clone()),
        }
    }
}
