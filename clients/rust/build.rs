//! Compiles the protos into messages, clients, servers and descriptor bytes.
//! protox does it in Rust: no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", protos.display());

    let mut files: Vec<PathBuf> = fs::read_dir(protos.join("bailiwick/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    files.push(protos.join("bailiwick/access/v1/access.proto"));
    // Reflection serves it, so that grpcurl prints the details of errors.
    files.push(protos.join("google/rpc/error_details.proto"));

    let mut compiler = protox::Compiler::new([&protos])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;

    // The encoded form keeps the options that our extensions define; the
    // struct, which loses them, is for the code generator alone.
    let descriptor = compiler.encode_file_descriptor_set();
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptor.bin"), &descriptor)?;

    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(prost_types::FileDescriptorSet::decode(descriptor.as_slice())?)?;
    Ok(())
}
