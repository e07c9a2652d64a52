//! The generated messages and services, one module for each proto package.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
#![cfg_attr(
    feature = "server",
    expect(clippy::as_conversions, clippy::allow_attributes, reason = "generated code")
)]

/// Every `.proto` of the server with its options and comments, an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// The same of what a worker process serves itself.
pub const WORKER_FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/worker_descriptor.bin"));

pub mod bailiwick {
    pub mod access {
        pub mod v1 {
            tonic::include_proto!("bailiwick.access.v1");
        }
    }
    pub mod v1 {
        tonic::include_proto!("bailiwick.v1");
    }
}

pub mod envoy {
    pub mod service {
        pub mod auth {
            pub mod v3 {
                tonic::include_proto!("envoy.service.auth.v3");
            }
        }
    }
}

pub mod google {
    pub mod api {
        tonic::include_proto!("google.api");
    }
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub use bailiwick::v1;
