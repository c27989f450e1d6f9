//! The headless Services, by which pods have names.

use atoll_crds::names::{self, Component, ports};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{component_labels, owned_meta, selector};
use crate::validate::Wanted;

/// The Service of a component. Pods that aren't ready have names too: members find each other before they serve.
pub fn service(wanted: &Wanted, component: Component) -> Service {
    let port = |name: &str, port: u16| ServicePort {
        name: Some(name.to_owned()),
        port: port.into(),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: owned_meta(
            wanted,
            names::workload(&wanted.name, component),
            component_labels(wanted, component),
        ),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(wanted, component)),
            ports: Some(vec![
                port(ports::NAME_SERVER, component.port()),
                port(ports::NAME_HTTP, component.http_port()),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
