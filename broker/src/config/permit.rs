//! A `permit` scope of `broker`: what may be asked for beyond the listener scopes.

use super::cidr::Cidr;
use super::cluster::interface;
use super::limit::Limit;
use super::pattern::ListenPattern;
use super::reader::Reader;
use super::source::Spanned;

/// One `permit` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Its name, by which peers refer to it; case counts.
    pub name: Spanned<String>,
    /// Endpoints that may be listened on.
    pub listen: Vec<Spanned<ListenPattern>>,
    /// Addresses that may be put on an interface.
    pub address: Vec<Spanned<Cidr>>,
    /// Those addresses may stay for ever, too: with a lease of 0.
    pub permanent: bool,
    /// Interfaces that may be set up, down or to another MTU.
    pub interface: Vec<Spanned<String>>,
    /// What a worker may have its resource limits raised to.
    pub limit: Vec<Spanned<Limit>>,
}

impl Permit {
    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Option<Self> {
        let listen = words(&mut reader, "listen", |text| text.parse());
        let address =
            words(&mut reader, "address", |text| text.parse::<Cidr>().map_err(|error| error.to_string()));
        let interface = words(&mut reader, "interface", interface);
        let limit = words(&mut reader, "limit", |text| match text.split_once('=') {
            Some((resource, value)) => Limit::parse(resource.trim(), value.trim()),
            None => Err("write \"RESOURCE=VALUE\", in quotes".to_owned()),
        });
        let permanent = reader.boolean("permanent").unwrap_or(false);
        if let Some(option) = reader.section.option("permanent")
            && permanent
            && address.is_empty()
        {
            let message = "this permit names no address that could stay for ever";
            reader.error(option.value.span(), message, "write address = ( ADDRESS/PREFIX ) in it");
        }
        reader.no_other_options();
        reader.no_other_scopes();
        Some(Permit { name: reader.instance("NAME")?, listen, address, permanent, interface, limit })
    }
}

/// A list whose words are each a value; the error of `parse` is what would be right.
fn words<T>(
    reader: &mut Reader<'_, '_>,
    name: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<Spanned<T>> {
    let mut values = Vec::new();
    for word in reader.list(name).unwrap_or_default() {
        match parse(&word.value) {
            Ok(value) => values.push(Spanned { value, span: word.span }),
            Err(help) => {
                let message = format!("{:?} is no value for {name}", word.value);
                reader.error(word.span, message, help);
            }
        }
    }
    values
}
