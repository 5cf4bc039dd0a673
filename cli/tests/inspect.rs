//! `aweigh inspect`.

use super::room::Room;

#[test]
fn a_model_is_inspected_without_a_gpu() {
    let room = Room::new();
    let figures = room.json(&["inspect", "--model", "model", "--tensors"]);
    assert_eq!(figures["architecture"], "LlamaForCausalLM");
    assert_eq!(figures["settings"]["num_hidden_layers"], "5");
    assert_eq!(figures["types"][0]["tensors"], 47);
    assert_eq!(figures["tensors"].as_array().map(Vec::len), Some(47));
    room.edit("model/config.json", "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 6");
    // A model that cannot be read is an error, as it is for the other commands.
    room.refuses(&["inspect", "--model", "model"], &["expected tensor model.layers.5.", "found none"]);
}
