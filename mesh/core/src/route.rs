//! From the host a caller names to the service it means.
//!
//! | Host (suffix `mesh`) | Service |
//! |---|---|
//! | `orders`, `orders.mesh` | `orders` in the default namespace |
//! | `orders.pay.mesh` | `orders.pay` in the default namespace if there is one, otherwise `orders` in namespace `pay` |
//! | anything else | refused: this is no general proxy |
//!
//! The literal name goes first because it is the more specific claim: somebody registered exactly it.

use crate::id::{NameError, Namespace, ServiceKey, ServiceName};
use crate::view::View;

/// Why a host leads to no service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// It has dots but does not end with the mesh's suffix (or is an IP address).
    #[error("host {host:?} is not of this mesh; call services as \"NAME.{suffix}\" or \"NAME.NAMESPACE.{suffix}\"")]
    NotMesh {
        /// The host, cut at 80 characters.
        host: String,
        /// The suffix it should end with.
        suffix: String,
    },
    /// It would be of the mesh, but is no possible name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The service meant by `host` (a `Host` header or a target's authority; a port is ignored). The service need not
/// exist: `view` is only asked which of two readings of a dotted name is meant.
///
/// # Errors
/// [`RouteError`], with a sentence for the caller.
pub fn route(host: &str, suffix: &str, view: &View) -> Result<ServiceKey, RouteError> {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    if !name.contains('.') && !name.starts_with('[') {
        return in_default(name);
    }
    let Some(name) = strip_suffix_label(name, suffix) else {
        return Err(RouteError::NotMesh { host: host.chars().take(80).collect(), suffix: suffix.into() });
    };
    let Some((service, namespace)) = name.rsplit_once('.') else {
        return in_default(name);
    };
    if let Ok(literal) = in_default(name)
        && view.service(&literal).is_some()
    {
        return Ok(literal);
    }
    Ok(ServiceKey { namespace: namespace.parse()?, service: service.parse()? })
}

fn in_default(name: &str) -> Result<ServiceKey, RouteError> {
    Ok(ServiceKey { namespace: Namespace::default(), service: name.parse::<ServiceName>()? })
}

/// `orders.mesh` -> `orders`; `None` when the last label is another one or nothing is before it.
fn strip_suffix_label<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let at = name.len().checked_sub(suffix.len() + 1)?;
    let (rest, last) = (name.get(..at)?, name.get(at..)?);
    (last.strip_prefix('.')?.eq_ignore_ascii_case(suffix) && !rest.is_empty()).then_some(rest)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sorted::Sorted;
    use crate::view::{Revision, ServiceView};

    fn view_with(names: &[&str]) -> View {
        let mut view = View::empty("n1".parse().unwrap(), Default::default());
        for name in names {
            let (namespace, service) = name.split_once('/').unwrap();
            let key = ServiceKey { namespace: namespace.parse().unwrap(), service: service.parse().unwrap() };
            let service = ServiceView::new(key.clone(), Revision(1), Sorted::default());
            view.services.insert_mut(key, Arc::new(service));
        }
        view
    }

    fn routed(host: &str, view: &View) -> String {
        route(host, "mesh", view).map_or_else(|error| error.to_string(), |key| key.to_string())
    }

    #[test]
    fn a_host_names_a_service_of_the_default_namespace() {
        let view = view_with(&[]);
        for host in ["orders", "orders.mesh", "ORDERS.Mesh", "orders.mesh:80", "orders:8080", "orders.mesh."] {
            assert_eq!(routed(host, &view), "default/orders", "{host}");
        }
    }

    #[test]
    fn the_last_label_before_the_suffix_is_the_namespace_unless_a_service_has_the_whole_name() {
        assert_eq!(routed("orders.pay.mesh", &view_with(&[])), "pay/orders");
        assert_eq!(routed("a.b.pay.mesh", &view_with(&[])), "pay/a.b");
        assert_eq!(routed("orders.pay.mesh", &view_with(&["default/orders.pay"])), "default/orders.pay");
        assert_eq!(routed("orders.pay.mesh", &view_with(&["pay/orders.pay"])), "pay/orders");
    }

    #[test]
    fn a_name_that_is_not_the_meshs_is_refused_with_a_hint() {
        let view = view_with(&[]);
        for host in ["example.com", "127.0.0.1:15001", "[::1]:80", "orders.notmesh", ".mesh", "ordersmesh.x"] {
            let error = routed(host, &view);
            assert!(error.contains("not of this mesh") && error.contains("NAME.mesh"), "{host}: {error}");
        }
    }

    #[test]
    fn an_impossible_name_says_why() {
        let view = view_with(&[]);
        assert!(routed("", &view).contains("is empty"));
        assert!(routed("or ders.mesh", &view).contains("' '"));
        assert!(routed("orders..mesh", &view).contains("is empty"));
        assert!(routed("mésh", &view).contains('é'));
    }
}
