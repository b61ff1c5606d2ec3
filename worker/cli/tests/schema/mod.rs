//! Checks what `portreeve --json` writes against the schema that is installed with it.

use serde_json::Value;

const SCHEMA: &str = include_str!("../../../../deploy/schema/portreeve.schema.json");

/// Members that the schema does not describe are mistakes here. Programs have to accept those of later releases. A
/// definition that takes over the members of another one repeats them.
fn close_objects(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.contains_key("properties") {
                members.insert("additionalProperties".to_owned(), false.into());
            }
            members.values_mut().for_each(close_objects);
        }
        Value::Array(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
}

/// Checks a value against a definition of the schema.
#[track_caller]
pub fn check(definition: &str, value: &Value) {
    let mut schema: Value = serde_json::from_str(SCHEMA).unwrap();
    close_objects(&mut schema);
    let name = format!("#/$defs/{definition}");
    assert!(schema["anyOf"].as_array().unwrap().iter().any(|one| one["$ref"] == name), "{name}");
    schema["anyOf"] = serde_json::json!([{ "$ref": name }]);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mistakes: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(mistakes.is_empty(), "{definition}: {mistakes:?} in {value}");
}
