//! A `permit` scope of `broker`: what peers can be allowed besides the configured listeners.

use super::cidr::Cidr;
use super::cluster::interface;
use super::limit::Limit;
use super::pattern::ListenPattern;
use super::reader::Reader;
use super::source::Spanned;

/// One `permit` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The permit's name, case-sensitive; `peer` scopes refer to it.
    pub name: Spanned<String>,
    /// Endpoints to listen on.
    pub listen: Vec<Spanned<ListenPattern>>,
    /// Whether peers can have the only copy of a socket that listens there.
    pub unkept: bool,
    /// Addresses that can be added to an interface.
    pub address: Vec<Spanned<Cidr>>,
    /// Whether those addresses can be permanent: a lease of 0.
    pub permanent: bool,
    /// Interfaces that can be set up, down, or to another MTU.
    pub interface: Vec<Spanned<String>>,
    /// The highest resource limits that a process can get.
    pub limit: Vec<Spanned<Limit>>,
}

impl Permit {
    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Option<Self> {
        let listen = reader.parsed_list("listen", |text| text.parse());
        let address =
            reader.parsed_list("address", |text| text.parse::<Cidr>().map_err(|error| error.to_string()));
        let interface = reader.parsed_list("interface", interface);
        let limit = reader.parsed_list("limit", |text| match text.split_once('=') {
            Some((resource, value)) => Limit::parse(resource.trim(), value.trim()),
            None => Err("write \"RESOURCE=VALUE\", in quotes".to_owned()),
        });
        let unkept = flag_beside(&mut reader, "unkept", ("listen", listen.is_empty(), "ENDPOINT"));
        let permanent =
            flag_beside(&mut reader, "permanent", ("address", address.is_empty(), "ADDRESS/PREFIX"));
        reader.no_other_options();
        reader.no_other_scopes();
        Some(Permit { name: reader.instance("NAME")?, listen, unkept, address, permanent, interface, limit })
    }
}

/// Reads a boolean option that has an effect only on the values of a list: its name, whether it is empty, and what one looks like.
fn flag_beside(
    reader: &mut Reader<'_, '_>,
    name: &'static str,
    (list, is_empty, value): (&str, bool, &str),
) -> bool {
    let is_set = reader.boolean(name).unwrap_or(false);
    if let Some(option) = reader.section.option(name)
        && is_set
        && is_empty
    {
        let message = format!("{name} has no effect: this permit has no {list}");
        reader.error(option.value.span(), message, format!("add {list} = ( {value} ) to it"));
    }
    is_set
}
