//! Query parameters onto the wire, and percent-decoding.

use std::collections::HashMap;

use super::{
    fault::{Fault, nearest},
    json::{Token, comma_separated, write_delimited, write_scalar},
    schema::{Field, Kind, MessageId, Schema, Shape},
};
use crate::pb::v1::Reason;

/// Parameters in one query at most.
const PARAMETERS_MAX: usize = 256;

/// Decodes `%41`; none when it is no valid encoding or not UTF-8.
pub(in crate::gateway) fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
            decoded.push(high * 16 + low);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Reads a query into the request's message. `taken` are the fields that the
/// path and the body have.
pub(in crate::gateway) fn query_to_message(
    schema: &Schema,
    id: MessageId,
    query: &str,
    taken: u128,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut seen: HashMap<Vec<u32>, String> = HashMap::new();
    let mut chosen: HashMap<Vec<u32>, u128> = HashMap::new();
    for (count, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        if count == PARAMETERS_MAX {
            return Err(Fault::malformed(format!(
                "The query has over {PARAMETERS_MAX} parameters"
            )));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            percent_decode(&text.replace('+', " "))
                .ok_or_else(|| Fault::malformed("The query is not valid percent-encoded UTF-8"))
        };
        let (name, value) = (decode(name)?, decode(value)?);
        let path = resolve(schema, id, &name)?;
        let Some((field, parents)) = path.split_last() else { continue };
        if let Some(first) = path.first()
            && taken & first.bit != 0
        {
            let what = "given in the path or the body too";
            return Err(Fault::field(Reason::FieldAmbiguous, &name, what));
        }
        let numbers: Vec<u32> = path.iter().map(|field| field.number).collect();
        if let Some(before) = seen.get(&numbers)
            && (field.shape == Shape::One || *before != name)
        {
            return Err(Fault::field(Reason::FieldAmbiguous, &name, "given twice"));
        }
        for (depth, field) in path.iter().enumerate() {
            let siblings = chosen.entry(numbers.iter().copied().take(depth).collect()).or_default();
            if *siblings & field.rivals != 0 {
                let what = "another of its kind is given";
                return Err(Fault::field(Reason::FieldAmbiguous, &name, what));
            }
            *siblings |= field.bit;
        }
        write_leaf(schema, field, parents, &value, out)
            .map_err(|what| Fault::field(Reason::FieldInvalid, &name, &what))?;
        seen.insert(numbers, name);
    }
    Ok(())
}

/// The fields along a name with dots; the last one is a value.
fn resolve<'s>(schema: &'s Schema, id: MessageId, name: &str) -> Result<Vec<&'s Field>, Fault> {
    let mut path = Vec::new();
    let mut within = Some(id);
    for part in name.split('.') {
        let message = within.map(|id| schema.message(id));
        let Some(field) = message.and_then(|message| message.field(part)) else {
            let known = message.into_iter().flat_map(|message| &message.fields);
            let near = nearest(part, known.map(|field| field.name.as_str()));
            let what = near.map_or_else(
                || "no such parameter".to_owned(),
                |near| format!("no such parameter; did you mean `{near}`?"),
            );
            return Err(Fault::field(Reason::RequestMalformed, &shortened(name), &what));
        };
        within = match (field.kind, field.shape) {
            (Kind::Message(id), Shape::One) => Some(id),
            _ => None,
        };
        path.push(field);
    }
    let leaf = path.last().filter(|field| {
        !matches!(field.kind, Kind::Message(_) | Kind::JsonText | Kind::Any)
            && !matches!(field.shape, Shape::Map(_))
    });
    if leaf.is_none() {
        let what = "cannot be given in a query";
        return Err(Fault::field(Reason::RequestMalformed, name, what));
    }
    Ok(path)
}

/// A stranger's name, not too long for an answer.
fn shortened(name: &str) -> String {
    const CHARACTERS_MAX: usize = 64;
    name.chars().take(CHARACTERS_MAX).collect()
}

fn write_leaf(
    schema: &Schema,
    field: &Field,
    parents: &[&Field],
    value: &str,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let mut bytes = Vec::new();
    if field.list_or_csv && field.shape == Shape::List {
        for word in comma_separated(value) {
            write_scalar(schema, field.kind, field.number, &Token::Word(word), &mut bytes)?;
        }
    } else {
        write_scalar(schema, field.kind, field.number, &Token::Word(value), &mut bytes)?;
    }
    // Parts of one message merge: each parameter may bring its own.
    for parent in parents.iter().rev() {
        let inner = std::mem::take(&mut bytes);
        write_delimited(parent.number, &inner, &mut bytes);
    }
    out.extend_from_slice(&bytes);
    Ok(())
}
