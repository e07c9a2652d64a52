//! Compiles the protos into messages, clients, servers and descriptor bytes.
//! protox does it in Rust: no `protoc` is needed.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;

const WORKER_PROCESS: &str = "bailiwick/v1/worker_process_service.proto";
const HEALTH: &str = "bailiwick/v1/health_service.proto";
const REASON: &str = "bailiwick/v1/reason.proto";
const ACCESS: &str = "bailiwick/access/v1/access.proto";
/// What Envoy asks of the server, in Envoy's own package.
const ENVOY: &str = "envoy/service/auth/v3/external_auth.proto";
const ERROR_DETAILS: &str = "google/rpc/error_details.proto";

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", protos.display());

    let mut files: Vec<PathBuf> = fs::read_dir(protos.join("bailiwick/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    files.push(protos.join(ACCESS));
    files.push(protos.join(ENVOY));
    // Reflection serves it, so that grpcurl prints the details of errors.
    files.push(protos.join(ERROR_DETAILS));

    // The encoded form keeps the options that our extensions define; the
    // struct, which loses them, is for the code generator alone. What a worker
    // process serves is a set of its own: its routes are the server's too.
    let descriptor = descriptors(&protos, &files)?;
    let server: Vec<PathBuf> =
        files.iter().filter(|file| !file.ends_with(WORKER_PROCESS)).cloned().collect();
    let worker: Vec<PathBuf> = [WORKER_PROCESS, HEALTH, REASON, ACCESS, ERROR_DETAILS]
        .map(|file| protos.join(file))
        .into();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptor.bin"), descriptors(&protos, &server)?)?;
    fs::write(out.join("worker_descriptor.bin"), descriptors(&protos, &worker)?)?;

    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(prost_types::FileDescriptorSet::decode(descriptor.as_slice())?)?;
    Ok(())
}

/// These files and what they import, encoded.
fn descriptors(protos: &Path, files: &[PathBuf]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut compiler = protox::Compiler::new([protos])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files)?;
    Ok(compiler.encode_file_descriptor_set())
}
