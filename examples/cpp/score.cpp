// Scores one schedule with ONNX Runtime: score cost_model.onnx features.bin
//
// features.bin holds a schedule's features as features.featurize gives them: float32, stage after stage, 217 a stage.
// The model takes any number of schedules at once, padded to the longest; lengths says how many stages each has.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s cost_model.onnx features.bin\n", argv[0]);
        return 2;
    }
    Ort::Env env;
    Ort::Session session(env, argv[1], Ort::SessionOptions{});
    const int64_t n_features = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape()[2];

    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<float> features(bytes.size() / sizeof(float));
    memcpy(features.data(), bytes.data(), features.size() * sizeof(float));
    int64_t n_stages = features.size() / n_features;
    if (n_stages == 0 || features.size() % n_features != 0) {
        fprintf(stderr, "%s: no whole number of stages of %d floats\n", argv[2], int(n_features));
        return 2;
    }

    const int64_t shape[] = {1, n_stages, n_features}, lengths_shape[] = {1};
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value inputs[] = {
        Ort::Value::CreateTensor<float>(memory, features.data(), features.size(), shape, 3),
        Ort::Value::CreateTensor<int64_t>(memory, &n_stages, 1, lengths_shape, 1),
    };
    const char *input_names[] = {"features", "lengths"};
    const char *output_names[] = {"predicted_ms", "lower_ms", "upper_ms"};
    auto outputs = session.Run(Ort::RunOptions{}, input_names, inputs, 2, output_names, 3);
    printf("%g ms (%g to %g)\n", *outputs[0].GetTensorData<float>(), *outputs[1].GetTensorData<float>(), *outputs[2].GetTensorData<float>());
}
