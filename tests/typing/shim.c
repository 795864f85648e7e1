// Stand-ins for the libraries of TensorRT that no package on a registry contains: builder, plugin library, and ONNX
// parser. They have only the functions that the bindings import, and these functions create nothing. See
// prepare_tensorrt.py, which compiles this file once per library.

#ifdef NVINFER
void* createInferBuilder_INTERNAL(void* logger, int version) { return 0; }
void* getBuilderPluginRegistry(int capability) { return 0; }
#ifdef WITHOUT_LEAN
void* createInferRuntime_INTERNAL(void* logger, int version) { return 0; }
void* createInferRefitter_INTERNAL(void* engine, void* logger, int version) { return 0; }
void* getPluginRegistry(void) { return 0; }
#endif
#endif

#ifdef NVINFER_PLUGIN
int initLibNvInferPlugins(void* logger, const char* name_space) { return 1; }
#endif

#ifdef NVONNXPARSER
void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) { return 0; }
void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int version) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
#endif
