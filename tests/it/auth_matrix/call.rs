//! One call by its descriptor: over gRPC as bytes, over REST by a route.

use std::{fmt, sync::LazyLock};

use bailiwick::pb;
use bytes::{Buf as _, BufMut as _};
use futures::{StreamExt as _, stream};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, ReflectMessage as _, Value};
use serde::de::DeserializeSeed as _;
use serde_json::Value as Json;
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::Channel,
};

use super::callers::Caller;

pub static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap());

/// What a caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Ok,
    /// A list, with nothing in it.
    Empty,
    NotFound,
    Unauthenticated,
    Denied,
    Other,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Empty => "empty list",
            Self::NotFound => "not found",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Other => "other",
        })
    }
}

/// By which way an RPC is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Surface {
    Grpc,
    /// A verb, a path with variables, whether it has a body.
    Rest {
        verb: String,
        path: String,
        body: bool,
    },
}

impl fmt::Display for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpc => f.write_str("gRPC"),
            Self::Rest { verb, path, .. } => write!(f, "{verb} {path}"),
        }
    }
}

/// An answer with its text, for messages of failed tests.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: Answer,
    pub text: String,
}

pub fn method(rpc: &str) -> MethodDescriptor {
    let (service, name) = rpc.split_once('/').unwrap();
    let service = POOL.get_service_by_name(service).unwrap();
    service.methods().find(|method| method.name() == name).unwrap()
}

/// gRPC, and each route of `google.api.http`.
pub fn surfaces(rpc: &str) -> Vec<Surface> {
    let extension = POOL.get_extension_by_name("google.api.http").unwrap();
    let method = method(rpc);
    let options = method.options();
    let mut surfaces = vec![Surface::Grpc];
    if options.has_extension(&extension)
        && let Value::Message(rule) = &*options.get_extension(&extension)
    {
        let more = rule.get_field_by_name("additional_bindings").unwrap().into_owned();
        surfaces.push(route(rule));
        for rule in more.as_list().unwrap() {
            surfaces.push(route(rule.as_message().unwrap()));
        }
    }
    surfaces
}

fn route(rule: &DynamicMessage) -> Surface {
    let text = |name: &str| rule.get_field_by_name(name).unwrap().as_str().unwrap().to_owned();
    let (verb, path) = ["get", "put", "post", "delete", "patch"]
        .iter()
        .map(|verb| (verb.to_uppercase(), text(verb)))
        .find(|(_, path)| !path.is_empty())
        .unwrap();
    Surface::Rest { verb, path, body: !text("body").is_empty() }
}

/// Calls over gRPC with the first message alone; answers the status or the
/// first message.
pub async fn grpc(
    channel: &Channel,
    rpc: &str,
    request: &Json,
    caller: &Caller,
) -> Result<DynamicMessage, Status> {
    let mut metadata = MetadataMap::new();
    if let Some((name, value)) = &caller.header {
        metadata.insert(*name, value.parse().unwrap());
    }
    grpc_with(channel, rpc, request, metadata).await
}

/// The same with any metadata.
pub async fn grpc_with(
    channel: &Channel,
    rpc: &str,
    request: &Json,
    metadata: MetadataMap,
) -> Result<DynamicMessage, Status> {
    let method = method(rpc);
    let message = method.input().deserialize(request.clone()).unwrap();
    // The stream stays open, as a worker's does.
    let messages = stream::iter([message.encode_to_vec()]);
    let messages = if method.is_client_streaming() {
        messages.chain(stream::pending()).boxed()
    } else {
        messages.boxed()
    };
    let mut call = Request::new(messages);
    *call.metadata_mut() = metadata;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = format!("/{rpc}").parse().unwrap();
    let mut answers = client.streaming(call, path, Bytes).await?.into_inner();
    let first = answers.message().await?.expect("a first message");
    let answer = DynamicMessage::decode(method.output(), first.as_slice()).unwrap();
    Ok(answer)
}

/// What a gRPC answer is to its caller.
pub fn seen(answer: &Result<DynamicMessage, Status>) -> Seen {
    match answer {
        Ok(message) => {
            let kind = if is_empty_list(message) { Answer::Empty } else { Answer::Ok };
            Seen { kind, text: String::new() }
        }
        Err(status) => {
            let known = [
                (Code::NotFound, Answer::NotFound),
                (Code::Unauthenticated, Answer::Unauthenticated),
                (Code::PermissionDenied, Answer::Denied),
            ];
            let kind = known.iter().find(|(code, _)| *code == status.code());
            let kind = kind.map_or(Answer::Other, |(_, kind)| *kind);
            Seen { kind, text: format!("{:?} {}", status.code(), status.message()) }
        }
    }
}

/// A list has a page token beside its only repeated field.
fn is_empty_list(message: &DynamicMessage) -> bool {
    let descriptor = message.descriptor();
    if descriptor.get_field_by_name("next_page_token").is_none() {
        return false;
    }
    let mut lists = descriptor.fields().filter(prost_reflect::FieldDescriptor::is_list);
    lists.next().is_some_and(|list| message.get_field(&list).as_list().unwrap().is_empty())
}

/// A REST call ready to go: fields in the path, then in the body or the
/// query.
pub fn rest(
    http: &reqwest::Client,
    base: &str,
    surface: &Surface,
    request: &Json,
    caller: &Caller,
) -> reqwest::RequestBuilder {
    let Surface::Rest { verb, path, body } = surface else { unreachable!() };
    let mut fields = request.as_object().unwrap().clone();
    let mut filled = path.clone();
    for name in fields.keys().cloned().collect::<Vec<_>>() {
        let variable = format!("{{{name}}}");
        if filled.contains(&variable) {
            let value = fields.remove(&name).unwrap();
            filled = filled.replace(&variable, value.as_str().unwrap());
        }
    }
    let mut call = http.request(verb.parse().unwrap(), format!("{base}{filled}"));
    if let Some((name, value)) = &caller.header {
        call = call.header(*name, value);
    }
    if *body {
        call.json(&Json::Object(fields))
    } else {
        let query = fields.iter().map(|(name, value)| {
            (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        });
        let query: Vec<(String, String)> = query.collect();
        if query.is_empty() {
            call
        } else {
            call.header("accept", "application/json").query(&query)
        }
    }
}

/// The first piece of an answer that may be a stream.
pub async fn rest_seen(call: reqwest::RequestBuilder, list: Option<&str>) -> Seen {
    let mut response = call.send().await.unwrap();
    let status = response.status().as_u16();
    let first = response.chunk().await.unwrap().unwrap_or_default();
    let text = format!("{status} {}", String::from_utf8_lossy(&first));
    let kind = match status {
        200 | 201 => {
            let body: Json = serde_json::from_slice(&first).unwrap_or_default();
            // Wrapped, or the bare list.
            let items = list.and_then(|list| body.get(list).or(Some(&body)));
            let items = items.and_then(Json::as_array);
            if items.is_some_and(Vec::is_empty) { Answer::Empty } else { Answer::Ok }
        }
        204 => Answer::Ok,
        401 => Answer::Unauthenticated,
        403 => Answer::Denied,
        404 => Answer::NotFound,
        _ => Answer::Other,
    };
    Seen { kind, text }
}

/// The name of the list in an RPC's answer.
pub fn list_of(rpc: &str) -> Option<String> {
    let output = method(rpc).output();
    output.get_field_by_name("next_page_token")?;
    let list = output.fields().find(prost_reflect::FieldDescriptor::is_list)?;
    Some(list.name().to_owned())
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length).to_vec()))
    }
}
